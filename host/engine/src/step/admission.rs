//! Admission: which requests run, whose blocks of the KV cache they get, and who gives way.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;

use polyskill_model::{BLOCK_POSITIONS, KvCache};

use super::State;
use super::blocks::BlockKeys;
use super::handle::Waiting;
use super::sequence::{Sequence, Start};
use crate::hooks::prefix::store_prefix;

impl State {
    /// Resumes preempted requests and starts waiting ones, while there is room. A request that does
    /// not fit holds up those behind it, so that a long one is not overtaken for ever. At most
    /// `max_rows` run, as each may need a row in every step.
    ///
    /// A tenant that has nothing in execution comes first, and takes the place of the newest
    /// request of whoever has most: nobody waits for another tenant's long answers to end.
    pub(super) fn admit(&mut self) {
        let most = self.config.max_running.min(self.config.max_rows);
        loop {
            if let Some(waiting) = self.waiting.pop_starving() {
                let has_place =
                    self.running.len() < most || self.make_room(&waiting.request.tenant);
                if !has_place || !self.start(waiting, true) {
                    break;
                }
                continue;
            }
            if self.running.len() >= most {
                break;
            }
            if let Some(mut preempted) = self.preempted.pop_front() {
                if self.resume(&mut preempted).is_none() {
                    self.preempted.push_front(preempted);
                    break;
                }
                self.running.push(preempted);
                continue;
            }
            let Some(waiting) = self.waiting.pop() else { break };
            if !self.start(waiting, false) {
                break;
            }
        }
        self.stats.running.store(self.running.len(), Relaxed);
        self.stats.kv_blocks_used.store(self.blocks.used(), Relaxed);
        self.stats.kv_blocks.store(self.blocks.total(), Relaxed);
    }

    /// Starts a waiting request; false, and it waits on, where there is no room for its prompt.
    /// `takes_room` lets it take that of others.
    fn start(&mut self, mut waiting: Waiting, takes_room: bool) -> bool {
        loop {
            if let Some(start) = self.start_of(&mut waiting) {
                self.left_queue(&waiting);
                self.waiting.starts(&waiting.request.tenant);
                self.running.push(Sequence::new(waiting, start));
                return true;
            }
            if !takes_room || !self.make_room(&waiting.request.tenant) {
                self.waiting.push_front(waiting);
                return false;
            }
        }
    }

    /// Preempts the newest request of the tenant that has most in execution for its weight; false
    /// where no other tenant than `of` has two.
    fn make_room(&mut self, of: &str) -> bool {
        let mut shares: BTreeMap<&str, (usize, f64)> = BTreeMap::new();
        for sequence in self.running.iter().filter(|sequence| *sequence.tenant != *of) {
            let share = shares.entry(&sequence.tenant).or_default();
            *share = (share.0 + 1, share.1 + 1.0 / sequence.weight);
        }
        let crowd = shares.into_iter().filter(|(_, (count, _))| *count > 1);
        let Some((tenant, _)) = crowd.max_by(|a, b| a.1.1.total_cmp(&b.1.1)) else { return false };
        let Some(at) = self.running.iter().rposition(|sequence| *sequence.tenant == *tenant) else {
            return false;
        };
        let newest = self.running.remove(at);
        self.preempt(newest);
        true
    }

    /// Takes a sequence's blocks; it goes on before any other that is preempted.
    fn preempt(&mut self, mut sequence: Sequence) {
        self.blocks.release(sequence.preempt());
        self.stats.preemptions.fetch_add(1, Relaxed);
        self.preempted.push_front(sequence);
    }

    /// Counts a request that waits no longer.
    pub(super) fn left_queue(&self, waiting: &Waiting) {
        self.stats.waiting.fetch_sub(1, Relaxed);
        self.stats.left_queue(&waiting.request.tenant);
    }

    /// Gives a preempted sequence blocks for its tokens, those that are still cached first. `None`,
    /// and nothing reserved, where there is no room.
    fn resume(&mut self, sequence: &mut Sequence) -> Option<()> {
        let reusable = sequence.reusable();
        let found = match &mut sequence.keys {
            Some(keys) => self.blocks.find(keys.upto(reusable, &sequence.tokens)),
            None => Vec::new(),
        };
        let spare = self.running.len();
        let blocks = self.blocks.reserve(sequence.tokens.len(), &found, spare)?;
        let cached = found.len() * BLOCK_POSITIONS;
        store_prefix(&sequence.composition, cached, &blocks, &mut self.kv);
        let computed = cached.max(sequence.composition.parts.num_prefix);
        sequence.resume(blocks, found.len(), computed);
        Some(())
    }

    /// Gives every running sequence the blocks for its known tokens. Where none is left, the
    /// sequence that was admitted last gives its own up, so the first always goes on.
    pub(super) fn grow(&mut self) {
        let mut at = 0;
        while at < self.running.len() {
            let sequence = &mut self.running[at];
            if sequence.blocks.len() >= KvCache::blocks_for(sequence.tokens.len()) {
                at += 1;
            } else if let Some(block) = self.blocks.take() {
                sequence.blocks.push(block);
            } else if let Some(last) = self.running.pop() {
                self.preempt(last);
            }
        }
    }

    /// Reserves blocks for a request's prompt, shares the cached blocks of its beginning, and
    /// stores the keys and values that modules put before it. `None`, and nothing reserved, where
    /// there is no room; a block for each running sequence is left, so that it can grow.
    ///
    /// At least the last token is always computed, since its row gives the first logits. Scored
    /// prompts share nothing.
    fn start_of(&mut self, waiting: &mut Waiting) -> Option<Start> {
        let request = &waiting.request;
        let composition = &request.composition;
        let mut tokens = vec![0; composition.num_virtual_tokens()];
        tokens.extend_from_slice(&request.prompt);
        let is_cached = self.config.prefix_cache && request.sampling.answer_from.is_none();
        let identity = composition.cache_identity.filter(|_| is_cached);
        let mut keys = identity.map(|identity| BlockKeys::new(identity, &request.cache_salt));
        // The last token's row makes the first logits, and scored prompts need them all.
        let reusable = match request.sampling.prompt_logprobs {
            Some(_) => 0,
            None => tokens.len() - 1,
        };
        let found = match &mut keys {
            Some(keys) => self.blocks.find(keys.upto(reusable, &tokens)),
            None => Vec::new(),
        };
        let blocks = self.blocks.reserve(tokens.len(), &found, self.running.len())?;
        let cached = found.len() * BLOCK_POSITIONS;
        store_prefix(composition, cached, &blocks, &mut self.kv);
        let cached_tokens = cached.saturating_sub(composition.num_virtual_tokens());
        if keys.is_some() {
            self.stats.prefix_queries.fetch_add(request.prompt.len() as u64, Relaxed);
            self.stats.prefix_hits.fetch_add(cached_tokens as u64, Relaxed);
        }
        let computed = cached.max(composition.parts.num_prefix);
        let num_known = found.len();
        Some(Start { tokens, blocks, keys, num_known, computed, cached_tokens })
    }
}
