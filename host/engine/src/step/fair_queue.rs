//! Requests that wait, by tenant: the next is that of the tenant that has been served least.
//!
//! Served is counted in tokens over the tenant's weight, as in the virtual token counter of Sheng
//! et al. (Fairness in Serving Large Language Models, OSDI 2024): a tenant that had nothing to do
//! starts again where the least served of the others is, so that nobody saves up time, and whoever
//! floods the server waits behind its own requests alone.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::request::RequestId;

/// Idle tenants whose counts are remembered, at most.
const MAX_IDLE: usize = 1_024;

/// A request that can wait.
pub(super) trait Queued {
    /// Its number; earlier ones are smaller.
    fn id(&self) -> RequestId;
    /// The sender.
    fn tenant(&self) -> &Arc<str>;
    /// The sender's share against others, above 0.
    fn weight(&self) -> f64;
}

/// The queue.
pub(super) struct FairQueue<T> {
    /// Tenants that wait, run, or did so before.
    tenants: HashMap<Arc<str>, Tenant<T>>,
    /// Requests that wait.
    len: usize,
}

/// One tenant.
struct Tenant<T> {
    /// Its requests, in the order in which they came.
    waiting: VecDeque<T>,
    /// Its requests in execution, preempted ones included.
    running: usize,
    /// Tokens over the weight, so far.
    served: f64,
    /// Its share against other tenants.
    weight: f64,
}

impl<T> Default for FairQueue<T> {
    fn default() -> Self {
        Self { tenants: HashMap::new(), len: 0 }
    }
}

impl<T> Default for Tenant<T> {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), running: 0, served: 0.0, weight: 1.0 }
    }
}

impl<T> Tenant<T> {
    fn is_active(&self) -> bool {
        self.running > 0 || !self.waiting.is_empty()
    }
}

impl<T: Queued> FairQueue<T> {
    /// True where none waits.
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Puts a request behind the others of its tenant.
    pub(super) fn push(&mut self, waiting: T) {
        let active = self.tenants.values().filter(|tenant| tenant.is_active());
        let floor = active.map(|tenant| tenant.served).min_by(f64::total_cmp);
        self.forget_idle(floor);
        let tenant = self.tenants.entry(Arc::clone(waiting.tenant())).or_default();
        if !tenant.is_active() {
            tenant.served = tenant.served.max(floor.unwrap_or(0.0));
        }
        tenant.weight = waiting.weight().max(f64::MIN_POSITIVE);
        tenant.waiting.push_back(waiting);
        self.len += 1;
    }

    /// Puts a request that was taken back to the front of its tenant's.
    pub(super) fn push_front(&mut self, waiting: T) {
        let tenant = self.tenants.entry(Arc::clone(waiting.tenant())).or_default();
        tenant.waiting.push_front(waiting);
        self.len += 1;
    }

    /// The first request of the tenant that was served least; of equals the one that came first.
    pub(super) fn pop(&mut self) -> Option<T> {
        self.pop_of(|_| true)
    }

    /// The same among the tenants that have no request in execution.
    pub(super) fn pop_starving(&mut self) -> Option<T> {
        self.pop_of(|tenant| tenant.running == 0)
    }

    /// The first request of the tenant that was served least, of some.
    fn pop_of(&mut self, is_meant: impl Fn(&Tenant<T>) -> bool) -> Option<T> {
        let waiting = self.tenants.values_mut();
        let waiting = waiting.filter(|tenant| !tenant.waiting.is_empty() && is_meant(tenant));
        let first = |tenant: &Tenant<T>| tenant.waiting.front().map(Queued::id);
        let next = waiting
            .min_by(|a, b| a.served.total_cmp(&b.served).then_with(|| first(a).cmp(&first(b))))?;
        let popped = next.waiting.pop_front()?;
        self.len -= 1;
        Some(popped)
    }

    /// Takes a request out, if it waits.
    pub(super) fn remove(&mut self, id: RequestId) -> Option<T> {
        for tenant in self.tenants.values_mut() {
            if let Some(at) = tenant.waiting.iter().position(|waiting| waiting.id() == id) {
                self.len -= 1;
                return tenant.waiting.remove(at);
            }
        }
        None
    }

    /// Notes that a request of a tenant runs.
    pub(super) fn starts(&mut self, tenant: &Arc<str>) {
        self.tenants.entry(Arc::clone(tenant)).or_default().running += 1;
    }

    /// Notes that a request of a tenant has ended.
    pub(super) fn ends(&mut self, tenant: &str) {
        if let Some(tenant) = self.tenants.get_mut(tenant) {
            tenant.running = tenant.running.saturating_sub(1);
        }
    }

    /// Counts tokens that were computed for a tenant.
    pub(super) fn charge(&mut self, tenant: &str, tokens: usize) {
        if let Some(tenant) = self.tenants.get_mut(tenant) {
            tenant.served += tokens as f64 / tenant.weight.max(f64::MIN_POSITIVE);
        }
    }

    /// Forgets idle tenants that owe nothing, and the least served of too many others.
    fn forget_idle(&mut self, floor: Option<f64>) {
        if self.tenants.len() < MAX_IDLE {
            return;
        }
        let floor = floor.unwrap_or(f64::INFINITY);
        self.tenants.retain(|_, tenant| tenant.is_active() || tenant.served > floor);
        if self.tenants.len() >= 2 * MAX_IDLE {
            self.tenants.retain(|_, tenant| tenant.is_active());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Item {
        id: RequestId,
        tenant: Arc<str>,
        weight: f64,
    }

    impl Queued for Item {
        fn id(&self) -> RequestId {
            self.id
        }

        fn tenant(&self) -> &Arc<str> {
            &self.tenant
        }

        fn weight(&self) -> f64 {
            self.weight
        }
    }

    fn waiting(id: u64, tenant: &str, weight: f64) -> Item {
        Item { id: RequestId(id), tenant: Arc::from(tenant), weight }
    }

    /// Serves one request of 10 tokens at a time; returns the tenants in order.
    fn serve(queue: &mut FairQueue<Item>, turns: usize) -> Vec<String> {
        let mut served = Vec::new();
        for _ in 0..turns {
            let Some(next) = queue.pop() else { break };
            let tenant = Arc::clone(&next.tenant);
            queue.starts(&tenant);
            queue.charge(&tenant, 10);
            queue.ends(&tenant);
            served.push(tenant.to_string());
        }
        served
    }

    #[test]
    fn tenants_are_served_by_their_weights_whoever_floods() {
        let mut queue = FairQueue::default();
        for id in 0..400 {
            queue.push(waiting(id, "flood", 1.0));
        }
        for id in 400..500 {
            queue.push(waiting(id, "light", 1.0));
            queue.push(waiting(id + 500, "double", 2.0));
        }
        let served = serve(&mut queue, 160);
        let count = |name: &str| served.iter().filter(|tenant| *tenant == name).count();
        assert_eq!((count("flood"), count("light"), count("double")), (40, 40, 80));
    }

    #[test]
    fn nobody_saves_up_time_while_idle() {
        let mut queue = FairQueue::default();
        for id in 0..100 {
            queue.push(waiting(id, "busy", 1.0));
        }
        serve(&mut queue, 50);
        for id in 100..150 {
            queue.push(waiting(id, "late", 1.0));
        }
        let served = serve(&mut queue, 20);
        let late = served.iter().filter(|tenant| *tenant == "late").count();
        assert!((9..=11).contains(&late), "{served:?}");
    }

    #[test]
    fn starving_tenants_are_found_and_requests_taken_out() {
        let mut queue = FairQueue::default();
        queue.push(waiting(1, "a", 1.0));
        queue.starts(&Arc::from("a"));
        assert!(queue.pop_starving().is_none());
        queue.push(waiting(2, "b", 1.0));
        assert_eq!(queue.pop_starving().unwrap().id, RequestId(2));
        assert_eq!(queue.remove(RequestId(1)).unwrap().id, RequestId(1));
        assert!(queue.remove(RequestId(1)).is_none() && queue.is_empty());
    }
}
