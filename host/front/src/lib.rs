//! What stands before the answers: connections, senders, room for bodies, and lanes of work. It
//! knows no request and no model, and bounds what a client can make a server hold.

pub mod bodies;
pub mod connections;
pub mod lanes;
pub mod origins;
pub mod tenants;

use std::time::Duration;

use tokio::sync::watch;

pub use bodies::BodyRoom;
pub use connections::{ConnectionSettings, Peer, serve};
pub use lanes::{PlanningLanes, TextLanes};
pub use origins::Origins;
pub use tenants::{Tenant, TenantConfig, Tenants};

/// The bounds on what comes in, and the order to stop.
#[derive(Debug)]
pub struct Front {
    /// The room for request bodies.
    pub body_room: BodyRoom,
    /// The lanes of work on texts.
    pub text_lanes: TextLanes,
    /// The lanes of routers that plan.
    pub planning: PlanningLanes,
    /// The hosts and origins that requests may name.
    pub origins: Origins,
    /// The senders that share the engine.
    pub tenants: Tenants,
    /// Time after which a step of the engine counts as stuck; `None` for never.
    pub stuck_after: Option<Duration>,
    /// True once the server is to stop.
    stop: watch::Sender<bool>,
}

impl Front {
    /// As configured, for a server that listens on `listen`, `host:port`. A body has at most
    /// `max_body` bytes.
    pub fn new(
        settings: &ConnectionSettings,
        tenants: &[TenantConfig],
        listen: &str,
        max_body: usize,
        stuck_after: Option<Duration>,
    ) -> Self {
        Self {
            body_room: BodyRoom::new(settings, max_body),
            text_lanes: TextLanes::default(),
            planning: PlanningLanes::default(),
            origins: Origins::new(settings, listen),
            tenants: Tenants::new(tenants, settings),
            stuck_after,
            stop: watch::Sender::new(false),
        }
    }

    /// Tells the server to stop: it takes no new requests, and those in execution finish.
    pub fn drain(&self) {
        self.stop.send_replace(true);
    }

    /// True once the server is to stop.
    pub fn is_draining(&self) -> bool {
        *self.stop.borrow()
    }

    /// Hears of the order to stop.
    pub fn stop(&self) -> watch::Receiver<bool> {
        self.stop.subscribe()
    }
}
