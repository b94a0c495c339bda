//! Connections: accepted within bounds, guarded against clients that stall, and closed in order.
//!
//! A bound on connections alone would let idle ones keep everybody out, so a new connection takes
//! the place of the one that has been idle the longest. Idle is a connection without a request in
//! execution: one that sends its headers slowly is, too.

mod stall;

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc, watch};

use self::stall::{Counted, StallGuard};

/// Headers of one request, at most.
const MAX_HEADERS: usize = 100;
/// Bytes of one request's headers at most, and of what is buffered for a slow reader.
const MAX_BUFFER: usize = 64 << 10;
/// The time between two complaints about connections that could not be accepted.
const LOG_INTERVAL: Duration = Duration::from_secs(5);
/// The pause after a connection could not be accepted, so that the loop does not spin.
const PAUSE: Duration = Duration::from_millis(50);
/// The answer to a connection that there is no room for.
const NO_ROOM: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\n\
    Content-Type: application/json\r\nContent-Length: 98\r\n\r\n\
    {\"error\":{\"message\":\"too many connections\",\"type\":\"ServiceUnavailable\",\"param\":null,\"code\":503}}  ";

/// `[connections]` of the configuration.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConnectionSettings {
    /// Connections at once, 1,024 by default; never more than three quarters of the files that the
    /// system lets this process open.
    pub max: usize,
    /// Time for the headers of a request, the wait for them included, in seconds; 75 by default.
    pub header_seconds: u64,
    /// Time for the body of a request, in seconds; 60 by default.
    pub body_seconds: u64,
    /// Time in which a client must have taken something of what it was sent, in seconds; 30 by
    /// default.
    pub write_seconds: u64,
    /// MiB of request bodies that are being read or worked on, over all connections; 64 by default.
    /// A body beyond is refused with 503. Those of at most 64 KiB have as much of their own.
    pub body_mib: usize,
    /// Time that running requests have after the signal to stop, in seconds; 60 by default. Then
    /// they are cut off.
    pub drain_seconds: u64,
    /// The header in which `proxies` name the sender of a request, such as `x-forwarded-for`.
    pub tenant_header: Option<String>,
    /// Addresses of proxies whose `tenant_header` is believed.
    pub proxies: Vec<String>,
    /// Names by which requests may call this server in `Host`, beside those of this machine alone.
    /// They are looked at where the server listens on a loopback address, which a page in a browser
    /// could reach under a name of its own.
    pub hosts: Vec<String>,
    /// Web origins whose pages may send requests from a browser, such as `https://app.example.org`;
    /// `*` is any. The server's own page needs no entry.
    pub origins: Vec<String>,
}

impl Default for ConnectionSettings {
    fn default() -> Self {
        Self {
            max: 1_024,
            header_seconds: 75,
            body_seconds: 60,
            write_seconds: 30,
            body_mib: 64,
            drain_seconds: 60,
            tenant_header: None,
            proxies: Vec::new(),
            hosts: Vec::new(),
            origins: Vec::new(),
        }
    }
}

/// The address of the client, in the extensions of a request.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// Serves connections until `stop` is true, then lets requests in execution finish for at most
/// [`ConnectionSettings::drain_seconds`].
pub async fn serve(
    listener: TcpListener,
    app: Router,
    settings: &ConnectionSettings,
    mut stop: watch::Receiver<bool>,
) {
    let open = Arc::new(Open::new(settings.max));
    // Every connection holds a sender, so the receiver ends with the last of them.
    let (alive, mut ended) = mpsc::channel::<Infallible>(1);
    let mut complained: Option<Instant> = None;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.wait_for(|stop| *stop) => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                let Some(slot) = open.enter() else {
                    complain(&mut complained, "no room for a connection: all of them are busy");
                    let _ = stream.try_write(NO_ROOM);
                    continue;
                };
                let (app, alive, stop) = (app.clone(), alive.clone(), stop.clone());
                let (settings, open) = (settings.clone(), Arc::clone(&open));
                tokio::spawn(async move {
                    connection(stream, peer, app, &settings, &slot, stop).await;
                    open.leave(&slot);
                    drop(alive);
                });
            }
            Err(error) => {
                complain(&mut complained, &format!("a connection could not be accepted: {error}"));
                // Of files there are none left: an idle connection gives one back.
                open.evict();
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    drop(listener);
    drop(alive);
    let limit = Duration::from_secs(settings.drain_seconds);
    if tokio::time::timeout(limit, ended.recv()).await.is_err() {
        tracing::warn!(
            seconds = limit.as_secs(),
            "requests were cut off: the time to finish is over"
        );
    }
}

/// Logs a problem, but not more often than every few seconds.
fn complain(last: &mut Option<Instant>, problem: &str) {
    if last.is_none_or(|last| last.elapsed() >= LOG_INTERVAL) {
        tracing::warn!("{problem}");
        *last = Some(Instant::now());
    }
}

/// Serves one connection until its end, its eviction, or the end of its last request after the
/// signal to stop.
async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    app: Router,
    settings: &ConnectionSettings,
    slot: &Arc<Slot>,
    mut stop: watch::Receiver<bool>,
) {
    // Small pieces of streams are not held back.
    let _ = stream.set_nodelay(true);
    let io = StallGuard::new(stream, Duration::from_secs(settings.write_seconds));
    let app = TowerToHyperService::new(app);
    let service = service_fn(|mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(Peer(peer));
        let in_flight = InFlight::of(slot);
        let answer = app.call(request);
        async move {
            let response: Response = answer.await?;
            Ok::<_, Infallible>(
                response.map(|body| Body::new(Counted { body, _in_flight: in_flight })),
            )
        }
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(settings.header_seconds))
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_BUFFER);
    let mut served = pin!(builder.serve_connection(TokioIo::new(io), service));
    let mut stopping = false;
    loop {
        tokio::select! {
            result = served.as_mut() => {
                if let Err(error) = result {
                    tracing::debug!(%peer, %error, "a connection ended");
                }
                return;
            }
            () = slot.close.notified() => return,
            _ = stop.wait_for(|stop| *stop), if !stopping => {
                stopping = true;
                served.as_mut().graceful_shutdown();
            }
        }
    }
}

/// The open connections.
#[derive(Debug)]
struct Open {
    /// Connections at once.
    max: usize,
    /// The next connection's number.
    next: AtomicU64,
    /// Connections by number, but for those that were told to close.
    slots: Mutex<HashMap<u64, Arc<Slot>>>,
}

/// One connection, as others see it.
#[derive(Debug)]
struct Slot {
    number: u64,
    /// Requests whose answers are not out yet.
    in_flight: AtomicUsize,
    /// The end of the last request, or the beginning.
    idle_since: Mutex<Instant>,
    /// Tells the connection to close.
    close: Notify,
}

impl Open {
    /// Room for `max` connections, as far as files go.
    fn new(max: usize) -> Self {
        let max = open_files().map_or(max, |files| max.min(files / 4 * 3)).max(1);
        Self { max, next: AtomicU64::new(0), slots: Mutex::default() }
    }

    /// A place for a connection, that of the longest idle one if need be; `None` where none is
    /// idle.
    fn enter(&self) -> Option<Arc<Slot>> {
        let mut slots = self.lock();
        if slots.len() >= self.max && !evict(&mut slots) {
            return None;
        }
        let slot = Arc::new(Slot {
            number: self.next.fetch_add(1, Relaxed),
            in_flight: AtomicUsize::new(0),
            idle_since: Mutex::new(Instant::now()),
            close: Notify::new(),
        });
        slots.insert(slot.number, Arc::clone(&slot));
        Some(slot)
    }

    /// Closes the longest idle connection, if one is idle.
    fn evict(&self) {
        evict(&mut self.lock());
    }

    /// Gives a place back.
    fn leave(&self, slot: &Slot) {
        self.lock().remove(&slot.number);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Slot>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells the longest idle connection to close, and takes it out; false where none is idle.
fn evict(slots: &mut HashMap<u64, Arc<Slot>>) -> bool {
    let idle = slots.values().filter(|slot| slot.in_flight.load(Relaxed) == 0);
    let Some(longest) = idle.min_by_key(|slot| slot.idle_since()).map(|slot| slot.number) else {
        return false;
    };
    if let Some(slot) = slots.remove(&longest) {
        slot.close.notify_one();
    }
    true
}

impl Slot {
    fn idle_since(&self) -> Instant {
        *self.idle_since.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request in execution, until its answer is out or given up.
#[derive(Debug)]
struct InFlight(Arc<Slot>);

impl InFlight {
    fn of(slot: &Arc<Slot>) -> Self {
        slot.in_flight.fetch_add(1, Relaxed);
        Self(Arc::clone(slot))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        *self.0.idle_since.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.0.in_flight.fetch_sub(1, Relaxed);
    }
}

/// Files that the system lets this process open; `None` where it does not say.
fn open_files() -> Option<usize> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_connections_make_room_and_busy_ones_stay() {
        let open = Open::new(2);
        let (first, second) = (open.enter().unwrap(), open.enter().unwrap());
        let busy = InFlight::of(&first);
        let third = open.enter().unwrap();
        let held = |open: &Open| {
            let mut numbers: Vec<u64> = open.lock().keys().copied().collect();
            numbers.sort_unstable();
            numbers
        };
        assert_eq!(held(&open), [first.number, third.number], "the busy one stays");
        open.leave(&second);
        let also_busy = InFlight::of(&third);
        assert!(open.enter().is_none());
        drop((busy, also_busy));
        let fourth = open.enter().unwrap();
        assert_eq!(held(&open), [third.number, fourth.number], "the longest idle goes first");
    }

    #[test]
    fn the_answer_without_room_is_whole() {
        let text = std::str::from_utf8(NO_ROOM).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}", body.len())), "{}", body.len());
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["error"]["code"], 503);
    }
}
