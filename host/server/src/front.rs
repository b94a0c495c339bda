//! The part of a service that stands before its answers: room for bodies, lanes of work on texts, hosts
//! and origins, and the order to stop.

use std::time::Duration;

use tokio::sync::watch;

use crate::answer::planning::PlanningLanes;
use crate::api::{BodyRoom, MAX_BODY_BYTES, Origins, Tenants, TextLanes};
use crate::config::Config;

/// The bounds on what comes in, and the order to stop.
#[derive(Debug)]
pub struct Front {
    /// The room for request bodies.
    pub body_room: BodyRoom,
    /// The lanes of work on texts.
    pub text_lanes: TextLanes,
    /// The hosts and origins that requests may name.
    pub origins: Origins,
    /// The lanes of routers that plan.
    pub planning: PlanningLanes,
    /// The senders that share the engine.
    pub tenants: Tenants,
    /// Time after which a step of the engine counts as stuck; `None` for never.
    pub stuck_after: Option<Duration>,
    /// True once the server is to stop.
    stop: watch::Sender<bool>,
}

impl Front {
    /// As configured.
    pub fn new(config: &Config) -> Self {
        let stuck = Some(config.engine.stuck_seconds).filter(|seconds| *seconds > 0);
        let max_body = config.max_body_bytes.unwrap_or(MAX_BODY_BYTES);
        Self {
            body_room: BodyRoom::new(&config.connections, max_body),
            text_lanes: TextLanes::default(),
            origins: Origins::new(&config.connections, config.listen()),
            planning: PlanningLanes::default(),
            tenants: Tenants::new(&config.tenant, &config.connections),
            stuck_after: stuck.map(Duration::from_secs),
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
