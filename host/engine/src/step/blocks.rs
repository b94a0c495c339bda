//! KV blocks: free, in use, or cached for their content.
//!
//! A full block is known by a key that covers everything its keys and values depend on: the
//! composition, the tokens before it, and its own. A request whose sequence begins with known
//! blocks shares them. Blocks that nobody uses stay cached until the room is needed, the longest
//! unused first: vLLM's automatic prefix caching.

use std::collections::{BTreeMap, HashMap};

use polyskill_adapters::Generation;
use polyskill_model::{BLOCK_POSITIONS, KvCache};

/// All blocks of the cache. Each is in exactly one state: in `free`, in `idle`, or used by at least
/// one request.
#[derive(Debug)]
pub(crate) struct Blocks {
    /// Blocks without content; the last one is taken first.
    free: Vec<u32>,
    /// The state of every block, by its number.
    states: Vec<BlockState>,
    /// The block of each key; a key is that of one block.
    known: HashMap<Generation, u32>,
    /// Blocks with content that nobody uses, by the tick at which they became so.
    idle: BTreeMap<u64, u32>,
    /// Ticks once for each block that becomes idle, so no two share a tick.
    clock: u64,
}

/// The users and the content of one block.
#[derive(Clone, Debug, Default)]
struct BlockState {
    /// Requests that hold it.
    num_users: u32,
    /// The key of its content; `None` while it is not full, or must not be shared.
    key: Option<Generation>,
    /// Its tick in `idle`; of no meaning while it is used.
    idle_since: u64,
}

impl Blocks {
    /// All blocks are free.
    pub(crate) fn new(total: usize) -> Self {
        Self {
            free: (0..total as u32).rev().collect(),
            states: vec![BlockState::default(); total],
            known: HashMap::new(),
            idle: BTreeMap::new(),
            clock: 0,
        }
    }

    /// Blocks in all, used or not.
    pub(crate) fn total(&self) -> usize {
        self.states.len()
    }

    /// Blocks that requests use; a shared one counts once.
    pub(crate) fn used(&self) -> usize {
        self.total() - self.free.len() - self.idle.len()
    }

    /// The known blocks that a sequence begins with, by its keys in order; the first unknown key
    /// ends them. They are not reserved by this.
    pub(crate) fn find(&self, keys: &[Generation]) -> Vec<u32> {
        keys.iter().map_while(|key| self.known.get(key).copied()).collect()
    }

    /// Blocks for `positions` positions, of which the first are `found`, each with one user more, so
    /// that `spare` blocks are left. Where the room is not there, `None`, and nothing changes.
    ///
    /// `found` comes from [`Blocks::find`] in the same turn: an idle block may lose its content
    /// later.
    pub(crate) fn reserve(
        &mut self,
        positions: usize,
        found: &[u32],
        spare: usize,
    ) -> Option<Vec<u32>> {
        let new = KvCache::blocks_for(positions).checked_sub(found.len())?;
        let idle_found =
            found.iter().filter(|block| self.states[**block as usize].num_users == 0).count();
        if self.free.len() + self.idle.len() - idle_found < new + spare {
            return None;
        }
        for &block in found {
            let state = &mut self.states[block as usize];
            if state.num_users == 0 {
                self.idle.remove(&state.idle_since);
            }
            state.num_users += 1;
        }
        let mut blocks = found.to_vec();
        for _ in 0..new {
            blocks.push(self.take()?);
        }
        Some(blocks)
    }

    /// One block more for a sequence; `None` where all are used. Where none is free, the longest
    /// idle one loses its content and its key.
    pub(crate) fn take(&mut self) -> Option<u32> {
        let block = match self.free.pop() {
            Some(block) => block,
            None => self.idle.pop_first()?.1,
        };
        let state = &mut self.states[block as usize];
        state.num_users = 1;
        if let Some(key) = state.key.take() {
            self.known.remove(&key);
        }
        Some(block)
    }

    /// Makes a full block known by its key. Where another block has the key already, that one stays
    /// the known one, and this is freed after use.
    pub(crate) fn make_known(&mut self, block: u32, key: Generation) {
        let state = &mut self.states[block as usize];
        if state.key.is_none() && !self.known.contains_key(&key) {
            state.key = Some(key);
            self.known.insert(key, block);
        }
    }

    /// Takes one user from each block of a sequence. A block without users is idle where it has a
    /// key, and free otherwise.
    pub(crate) fn release(&mut self, blocks: Vec<u32>) {
        // The last block first: a sequence is forgotten from its end, and what is left is still a
        // beginning.
        for block in blocks.into_iter().rev() {
            let state = &mut self.states[block as usize];
            debug_assert!(state.num_users > 0, "a block was released twice");
            state.num_users = state.num_users.saturating_sub(1);
            if state.num_users > 0 {
                continue;
            }
            if state.key.is_some() {
                self.clock += 1;
                state.idle_since = self.clock;
                self.idle.insert(self.clock, block);
            } else {
                self.free.push(block);
            }
        }
    }
}

/// The keys of a sequence's full blocks: each covers the one before it, and so all tokens up to its
/// end.
#[derive(Clone, Debug)]
pub(crate) struct BlockKeys {
    /// The key before the first block.
    root: Generation,
    /// The keys so far, one per full block.
    keys: Vec<Generation>,
}

impl BlockKeys {
    /// `identity` is that of the composition's keys and values, `salt` keeps tenants apart.
    pub(crate) fn new(identity: Generation, salt: &str) -> Self {
        let root = Generation::of(&[b"prefix", &identity.0, salt.as_bytes()]);
        Self { root, keys: Vec::new() }
    }

    /// Keys of the full blocks within the first `positions` of the tokens. Each block is hashed
    /// once: tokens that earlier calls covered must not have changed.
    pub(crate) fn upto(&mut self, positions: usize, tokens: &[u32]) -> &[Generation] {
        let count = positions.min(tokens.len()) / BLOCK_POSITIONS;
        while self.keys.len() < count {
            let start = self.keys.len() * BLOCK_POSITIONS;
            let tokens = &tokens[start..start + BLOCK_POSITIONS];
            let bytes: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
            let before = self.keys.last().unwrap_or(&self.root);
            self.keys.push(Generation::of(&[&before.0, &bytes]));
        }
        &self.keys[..count]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn keys(identity: &[u8], salt: &str, tokens: &[u32]) -> Vec<Generation> {
        let mut keys = BlockKeys::new(Generation::of(&[identity]), salt);
        keys.upto(tokens.len(), tokens).to_vec()
    }

    #[test]
    fn blocks_balance() {
        let mut blocks = Blocks::new(4);
        let held = blocks.reserve(33, &[], 0).unwrap();
        assert_eq!((held.len(), blocks.used()), (3, 3));
        assert!(blocks.reserve(17, &[], 0).is_none());
        assert!(blocks.reserve(16, &[], 1).is_none(), "one is to be left");
        let last = blocks.take().unwrap();
        assert_eq!((blocks.take(), blocks.used()), (None, 4));
        blocks.release(vec![last]);
        blocks.release(held);
        assert_eq!(blocks.used(), 0);
    }

    #[test]
    fn a_beginning_is_shared_until_its_room_is_needed() {
        let mut blocks = Blocks::new(4);
        let tokens: Vec<u32> = (0..40).collect();
        let names = keys(b"base", "", &tokens);
        let first = blocks.reserve(40, &[], 0).unwrap();
        for (block, key) in first.iter().zip(&names) {
            blocks.make_known(*block, *key);
        }
        let found = blocks.find(&names);
        assert_eq!(found, first[..2]);
        let second = blocks.reserve(40, &found, 0).unwrap();
        assert_eq!((&second[..2], blocks.used()), (&first[..2], 4));
        blocks.release(first);
        blocks.release(second);
        assert_eq!((blocks.used(), blocks.find(&names).len()), (0, 2));
        let other = blocks.reserve(48, &[], 0).unwrap();
        assert_eq!(blocks.find(&names).len(), 1, "the end is forgotten first");
        blocks.release(other);
    }

    #[test]
    fn identity_salt_and_history_are_in_the_key() {
        let tokens: Vec<u32> = (0..32).collect();
        let plain = keys(b"base", "", &tokens);
        let other = keys(b"lora", "", &tokens);
        let salted = keys(b"base", "tenant", &tokens);
        let mut late = tokens.clone();
        late[3] = 99;
        let changed = keys(b"base", "", &late);
        for keys in [other, salted, changed] {
            assert!(keys.iter().zip(&plain).all(|(a, b)| a != b));
        }
        // A salt that looks like an identity is none.
        let identity = Generation::of(&[b"lora"]).to_string();
        assert_ne!(keys(b"base", &identity, &tokens), keys(b"lora", "", &tokens));
    }

    proptest! {
        #[test]
        fn users_and_room_always_balance(
            actions in proptest::collection::vec((0..4_u8, 1..90_usize), 1..80),
        ) {
            let mut blocks = Blocks::new(8);
            let tokens: Vec<u32> = (0..128).collect();
            let mut held: Vec<Vec<u32>> = Vec::new();
            for (kind, positions) in actions {
                if kind == 3 {
                    if let Some(last) = held.pop() {
                        blocks.release(last);
                    }
                    continue;
                }
                let names = keys(&[kind], "", &tokens[..positions]);
                let found = blocks.find(&names);
                if let Some(taken) = blocks.reserve(positions, &found, 0) {
                    prop_assert_eq!(taken.len(), KvCache::blocks_for(positions));
                    prop_assert_eq!(&taken[..found.len()], &found[..]);
                    for (block, key) in taken.iter().zip(&names) {
                        blocks.make_known(*block, *key);
                    }
                    held.push(taken);
                }
                let mut in_use: Vec<u32> = held.concat();
                in_use.sort_unstable();
                in_use.dedup();
                prop_assert_eq!(in_use.len(), blocks.used());
            }
            held.into_iter().for_each(|taken| blocks.release(taken));
            prop_assert_eq!(blocks.used(), 0);
            prop_assert!(blocks.reserve(128, &[], 0).is_some());
        }
    }
}
