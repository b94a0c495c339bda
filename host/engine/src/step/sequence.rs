//! A request in execution: its tokens, its blocks, and the tokens that steps add to it.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use super::blocks::BlockKeys;
use super::handle::Waiting;
use super::sampling::{Logprobs, Sampler};
use super::scheduler::Progress;
use super::trace::{RowTrace, Tally, TraceLevel};
use crate::compose::composition::Composition;
use crate::hooks::RowSpan;
use crate::hooks::shadow::{Agreement, Shadow};
use crate::request::{
    Event, EventSink, FinishReason, Finished, PromptLogprob, Reaction, Request, RequestId,
    TokenEvent,
};

/// A request in execution.
pub(super) struct Sequence {
    pub(super) id: RequestId,
    /// The sender.
    pub(super) tenant: Arc<str>,
    /// The sender's share against others.
    pub(super) weight: f64,
    /// A composition whose decisions are compared with those that are executed.
    shadow: Option<Arc<Shadow>>,
    /// Decisions that the shadow made alike, so far.
    pub(super) agreement: Agreement,
    /// The modules and the router, pinned until the request ends.
    pub(super) composition: Arc<Composition>,
    /// The part of the routing that is given out.
    trace: TraceLevel,
    /// Hears of tokens and the end.
    pub(super) sink: EventSink,
    sampler: Sampler,
    stop_tokens: Vec<u32>,
    min_tokens: usize,
    max_tokens: usize,
    /// Alternatives per prompt token; `None` where the prompt is not scored.
    prompt_logprobs: Option<usize>,
    /// Scores of the prompt's tokens so far, from the second on.
    scored: Vec<PromptLogprob>,
    /// Tokens by position: placeholders for what modules put before the sequence, the prompt, and
    /// the generated tokens.
    pub(super) tokens: Vec<u32>,
    /// Number of placeholders.
    start_len: usize,
    /// Number of placeholders and of the prompt's tokens.
    prompt_len: usize,
    /// Placeholders and tokens of the prompt, without the answer that is scored as part of it.
    asked_len: usize,
    /// Positions whose keys and values are stored.
    computed: usize,
    /// Tokens of the prompt that were stored already at admission.
    cached_tokens: usize,
    /// Blocks for the tokens so far, in order; none while the sequence is preempted.
    pub(super) blocks: Vec<u32>,
    /// Keys of the full blocks; `None` where they must not be shared.
    pub(super) keys: Option<BlockKeys>,
    /// Full blocks that are known by their keys already, from the first.
    pub(super) num_known: usize,
    /// The picks of generated tokens, added up.
    tally: Tally,
    /// Rows that fell back, once per site. With any, nothing of the sequence is shared from then
    /// on.
    fallback_rows: u64,
    submitted: Instant,
    admitted: Instant,
    first_token: Option<Instant>,
    /// The reason for the end, from the moment it is known to the end of the turn.
    pub(super) ended: Option<FinishReason>,
}

/// The beginning of a sequence: its blocks, and the part of the prompt that is stored already.
pub(super) struct Start {
    /// Placeholders and the prompt.
    pub(super) tokens: Vec<u32>,
    /// Reserved blocks; the first `num_known` hold their content already.
    pub(super) blocks: Vec<u32>,
    /// Keys of full blocks; `None` where they must not be shared.
    pub(super) keys: Option<BlockKeys>,
    pub(super) num_known: usize,
    /// Positions whose keys and values are stored: cached blocks, or prefixes of modules.
    pub(super) computed: usize,
    /// Tokens of the prompt in cached blocks.
    pub(super) cached_tokens: usize,
}

impl Sequence {
    /// Takes the sequence off the machine: its blocks go, and its tokens are computed again when it is
    /// resumed. Scores of a prompt that were not sent yet are made again.
    pub(super) fn preempt(&mut self) -> Vec<u32> {
        (self.computed, self.num_known) = (0, 0);
        self.scored.clear();
        std::mem::take(&mut self.blocks)
    }

    /// Goes on with new blocks, of which the first `num_known` hold their content, as far as
    /// `computed`.
    pub(super) fn resume(&mut self, blocks: Vec<u32>, num_known: usize, computed: usize) {
        (self.blocks, self.num_known, self.computed) = (blocks, num_known, computed);
    }

    /// Positions whose keys and values may come from cached blocks: not those of a prompt that is
    /// scored, and never the last token, whose row makes the next logits.
    pub(super) fn reusable(&self) -> usize {
        match self.prompt_logprobs {
            Some(_) => 0,
            None => self.tokens.len() - 1,
        }
    }

    /// A sequence that begins now, with its blocks reserved.
    pub(super) fn new(waiting: Waiting, start: Start) -> Self {
        let Waiting { id, request, sink, submitted } = waiting;
        let Request { prompt, sampling, composition, trace, shadow, tenant, weight, .. } = request;
        let Start { tokens, blocks, keys, num_known, computed, cached_tokens } = start;
        let asked_from = sampling.answer_from;
        Self {
            id,
            tenant,
            weight: weight.max(f64::MIN_POSITIVE),
            trace,
            shadow,
            agreement: Agreement::default(),
            sink,
            stop_tokens: sampling.stop_tokens.clone(),
            min_tokens: sampling.min_tokens,
            max_tokens: sampling.max_tokens,
            prompt_logprobs: sampling.prompt_logprobs,
            scored: Vec::new(),
            sampler: Sampler::new(sampling, &prompt),
            start_len: composition.num_virtual_tokens(),
            asked_len: asked_from.map_or(tokens.len(), |asked| {
                composition.num_virtual_tokens() + asked.min(prompt.len())
            }),
            prompt_len: tokens.len(),
            tokens,
            computed,
            cached_tokens,
            blocks,
            keys,
            composition,
            num_known,
            tally: Tally::default(),
            fallback_rows: 0,
            submitted,
            admitted: Instant::now(),
            first_token: None,
            ended: None,
        }
    }

    /// Its progress, for the scheduler.
    pub(super) fn progress(&self) -> Progress {
        let known = self.tokens.len();
        let decoding = self.computed >= self.prompt_len && self.computed + 1 == known;
        Progress { computed: self.computed, known, decoding }
    }

    /// Positions, from the first, whose keys and values follow from tokens and composition alone,
    /// so that other requests may use them.
    pub(super) fn sharable(&self) -> usize {
        // A row that fell back ran on another composition, and so did all that follows from it.
        if self.fallback_rows > 0 {
            return 0;
        }
        match self.composition.parts.at_prompt_end {
            // The last token of the prompt is treated as no other token at its place would be.
            true => self.computed.min(self.prompt_len - 1),
            false => self.computed,
        }
    }

    /// Notes a row that ran on the base instead. Where the policy is to fail, the request ends, and
    /// no token of this step is given out.
    pub(super) fn fall_back(&mut self) {
        self.fallback_rows += 1;
        if self.composition.fails_on_fault() {
            let router = self.composition.router().map_or("", |router| router.name.as_str());
            let why = self.composition.row_failure().unwrap_or_default();
            let reason = format!(
                "the router `{router}` left a row undecided, and its policy is to fail the request: {why}"
            );
            self.ended = Some(FinishReason::Error(reason));
        }
    }

    /// Positions of a step's range whose logits are needed: all of a prompt that is scored, else
    /// the last one of all tokens that are known, from which the next is drawn.
    pub(super) fn logit_positions(&self, range: &Range<usize>) -> Range<usize> {
        let is_last = range.end == self.tokens.len() && !range.is_empty();
        match self.prompt_logprobs {
            Some(_) if range.start < self.prompt_len => {
                range.start.max(self.start_len).min(range.end)..range.end
            }
            _ if is_last && self.max_tokens > 0 => range.end - 1..range.end,
            _ => range.end..range.end,
        }
    }

    /// The sequence's rows of a step, for the hooks; `rows` are their numbers in the step, `range`
    /// their positions. Only the row that draws a token is recorded.
    pub(super) fn span(&self, rows: Range<usize>, range: &Range<usize>) -> RowSpan {
        let is_recorded = self.trace != TraceLevel::None || self.shadow.is_some();
        let draws = range.end == self.tokens.len();
        RowSpan {
            trace_from: (is_recorded && draws).then(|| rows.end - 1),
            trace_full: self.trace == TraceLevel::Full,
            shadow: self.shadow.clone(),
            rows,
            position: range.start,
            prompt_len: self.asked_len,
            composition: Arc::clone(&self.composition),
        }
    }

    /// Takes over the results of a step for the positions in `range`; `logits` gives a row for each
    /// of `logit_positions`, which are taken from it even where the request has ended.
    ///
    /// A token is drawn once all known tokens are computed.
    pub(super) fn advance<'l>(
        &mut self,
        range: Range<usize>,
        logit_positions: Range<usize>,
        logits: &mut impl Iterator<Item = &'l mut [f32]>,
        trace: RowTrace,
    ) {
        if range.is_empty() {
            return;
        }
        self.computed = range.end;
        let mut last = None;
        for (position, row) in logit_positions.zip(logits) {
            if let (Some(top), Some(&next)) = (self.prompt_logprobs, self.tokens.get(position + 1))
            {
                let logprob = Some(Logprobs::new(row, top).of(next));
                self.scored.push(PromptLogprob { token: next, logprob });
            }
            last = Some(row);
        }
        if range.end < self.tokens.len() || self.ended.is_some() {
            return;
        }
        self.report_prompt();
        match last {
            Some(row) if self.max_tokens > 0 => self.emit(row, trace),
            _ => self.ended = Some(FinishReason::Length),
        }
    }

    /// Sends the scores of the prompt, once it is computed and before the first token.
    fn report_prompt(&mut self) {
        if self.prompt_logprobs.is_some() && self.tokens.len() == self.prompt_len {
            let first = PromptLogprob { token: self.tokens[self.start_len], logprob: None };
            let scored = std::iter::once(first).chain(std::mem::take(&mut self.scored)).collect();
            // It is not scored again, should it be computed again.
            self.prompt_logprobs = None;
            self.send(Event::Prompt(scored));
        }
    }

    /// Draws a token from the logits and sends it. A stop token counts only after `min_tokens`
    /// others.
    fn emit(&mut self, logits: &mut [f32], trace: RowTrace) {
        let Some((token, logprob)) = self.sampler.sample(logits) else {
            let reason = "no token can be chosen: the request's allowed tokens, bias and bad words leave \
                          none, or the weights of its modules make the logits overflow";
            self.ended = Some(FinishReason::Error(reason.to_owned()));
            return;
        };
        self.first_token.get_or_insert_with(Instant::now);
        self.tally.add(&trace.picks);
        self.tokens.push(token);
        let generated = self.tokens.len() - self.prompt_len;
        let full = self.trace == TraceLevel::Full;
        let RowTrace { picks: routing, experts } = if full { trace } else { RowTrace::default() };
        self.send(Event::Token(TokenEvent { token, logprob, routing, experts }));
        if self.ended.is_some() {
            return;
        }
        if self.stop_tokens.contains(&token) && generated > self.min_tokens {
            self.ended = Some(FinishReason::Stop);
        } else if generated >= self.max_tokens {
            self.ended = Some(FinishReason::Length);
        }
    }

    /// Sends an event; the sink's reaction may end the request.
    fn send(&mut self, event: Event) {
        match (self.sink)(event) {
            Reaction::Continue => {}
            Reaction::Stop => self.ended = Some(FinishReason::Stop),
            Reaction::Cancel => self.ended = Some(FinishReason::Cancelled),
        }
    }

    /// The report of the end. It takes the reason with it.
    pub(super) fn finished(&mut self) -> Finished {
        Finished {
            reason: self.ended.take().unwrap_or(FinishReason::Length),
            prompt_tokens: self.prompt_len - self.start_len,
            cached_tokens: self.cached_tokens,
            completion_tokens: self.tokens.len() - self.prompt_len,
            module_share: self.tally.shares(),
            agreement: self.shadow.is_some().then_some(self.agreement),
            fallback_rows: self.fallback_rows,
            time_to_first_token: self.first_token.map(|first| first - self.submitted),
            queue_time: self.admitted - self.submitted,
        }
    }
}
