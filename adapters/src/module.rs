//! One module: identity, kind, card, artefacts, and the place of its weights.

use std::sync::Arc;

use polyskill_model::Site;

use crate::artefact::{Artefact, Artefacts};
use crate::card::Card;
use crate::generation::Generation;
use crate::kind::Kind;
use crate::residency::{Reload, Residency, Stored};
use crate::weights::{Shape, Weights};

/// One immutable module. Its weights may be elsewhere until
/// [`Library::lease`](crate::Library::lease) brings them into memory.
#[derive(Debug)]
pub struct Module {
    /// The hash of configuration and weights.
    generation: Generation,
    /// The hash of the generation, the card and the artefacts.
    edition: Generation,
    /// The format's kind.
    kind: Kind,
    /// Facts about the weights that stay known while these are elsewhere.
    pub(crate) shape: Arc<Shape>,
    /// The weights, shared by all editions of a generation.
    pub(crate) stored: Arc<Stored>,
    /// Tags and metadata, which change nothing that is computed.
    card: Card,
    /// Gates and the like, for routers; always in memory.
    artefacts: Artefacts,
}

impl Module {
    /// A module with tags and nothing else beside its weights, which stay in memory.
    pub fn in_memory(
        generation: Generation,
        kind: Kind,
        weights: Weights,
        tags: Vec<String>,
    ) -> Self {
        let card = Card { tags, metadata: Vec::new() };
        Self::new(generation, kind, weights, None, card, Artefacts::default())
    }

    /// A module with its weights in memory. With `reload` they may leave once a pool has taken them
    /// over; without it they stay.
    pub(crate) fn new(
        generation: Generation,
        kind: Kind,
        weights: Weights,
        reload: Option<Reload>,
        card: Card,
        artefacts: Artefacts,
    ) -> Self {
        let edition = edition(generation, &card, &artefacts);
        let shape = Arc::new(weights.shape());
        let stored = Arc::new(Stored::new(weights, reload));
        Self { generation, edition, kind, shape, stored, card, artefacts }
    }

    /// The identity of the weights and their configuration: equal generations give equal logits,
    /// whatever their names.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// The identity of all that a router can see: generation, card and artefacts. A router's
    /// derived state, such as prototypes, is valid for one edition.
    pub fn edition(&self) -> Generation {
        self.edition
    }

    /// The module's kind, as its format names it.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Sites, ranks and sizes, known without the weights.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The place of the weights, in memory or not, and their counters.
    pub fn residency(&self) -> Residency {
        self.stored.residency()
    }

    /// Tags of the module card.
    pub fn tags(&self) -> &[String] {
        &self.card.tags
    }

    /// Entries of the module card other than tags, in its order; a list gives one entry per item.
    pub fn metadata(&self) -> &[(String, String)] {
        &self.card.metadata
    }

    /// The first `description` of the module card.
    pub fn description(&self) -> Option<&str> {
        let mut entries = self.metadata().iter();
        entries.find(|(key, _)| key == "description").map(|(_, value)| value.as_str())
    }

    /// The router artefacts that came with the module, by name.
    pub fn artefacts(&self) -> &[Artefact] {
        &self.artefacts.valid
    }

    /// Shape and values of an artefact at a site. Values are widened to 32 bits at every call, so
    /// callers keep them.
    pub fn artefact(&self, name: &str, site: Site) -> Option<(&[u32], Vec<f32>)> {
        self.artefacts().iter().find(|artefact| artefact.name() == name)?.at(site)
    }

    /// Artefacts that are not offered because they were made with another base, and why. One
    /// sentence each, which names the file.
    pub fn left_out(&self) -> &[String] {
        &self.artefacts.left_out
    }

    /// Bytes of weights, in memory or not.
    pub fn num_bytes(&self) -> usize {
        self.stored.num_bytes()
    }
}

/// Hashes the generation, each artefact's name and digest, and each entry of the card, in order.
fn edition(generation: Generation, card: &Card, artefacts: &Artefacts) -> Generation {
    let mut parts = vec![generation.0.to_vec()];
    for artefact in &artefacts.valid {
        parts.extend([artefact.name().as_bytes().to_vec(), artefact.digest().to_vec()]);
    }
    let entries = card.metadata.iter().map(|(key, value)| (key.as_str(), value));
    let tags = card.tags.iter().map(|tag| ("tags", tag));
    for (key, value) in tags.chain(entries) {
        parts.extend([key.as_bytes().to_vec(), value.as_bytes().to_vec()]);
    }
    let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
    Generation::of(&parts)
}
