//! Readers of a module's artefacts: files, manifests and tensors.

use std::collections::{BTreeMap, HashMap};

use polyskill_model::Site;
use safetensors::tensor::{Dtype, Metadata, SafeTensors, TensorView};
use sha2::{Digest, Sha256};

use super::{Artefact, Artefacts, EXTENSION, FOLDER, MAX_ARTEFACTS, MAX_BYTES};
use crate::base::Base;
use crate::error::Error;
use crate::files::{Files, Problems};
use crate::generation::Generation;
use crate::lora::Elements;
use crate::peft::bundle::elements;
use crate::peft::site_of;

/// Most dimensions of a tensor.
const MAX_DIMENSIONS: usize = 4;
/// Most elements of a tensor, in vectors of its site's input width.
const MAX_VECTORS: usize = 64;
/// Longest name, method or variant.
const MAX_WORD_BYTES: usize = 128;
/// Values from outside are quoted up to here.
const MAX_QUOTED: usize = 80;

/// Reads the artefacts of a module's directory.
///
/// An artefact that was made with another base is left out: the module itself is good on every base
/// that it fits, also a quantised one. Everything else that is wrong refuses the module. Without
/// the folder there are none.
pub(crate) fn load(
    files: Files<'_>,
    generation: Generation,
    base: Base<'_>,
) -> Result<Artefacts, Error> {
    let mut artefacts = Artefacts::default();
    if !files.has(FOLDER) {
        return Ok(artefacts);
    }
    let mut problems = Problems::default();
    for name in files.stems(FOLDER, EXTENSION, MAX_ARTEFACTS)? {
        let file = format!("{FOLDER}/{name}.{EXTENSION}");
        let bytes = files.read(&file, MAX_BYTES)?;
        match parse(&name, &bytes, generation, base) {
            Ok(Ok(artefact)) => artefacts.valid.push(artefact),
            Ok(Err(reason)) => artefacts.left_out.push(format!("{file}: {reason}")),
            Err(found) => {
                found.into_iter().for_each(|problem| problems.add(format!("{file}: {problem}")));
            }
        }
    }
    problems.into_result(artefacts).map_err(|problems| Error::refused(files.name, problems))
}

/// Reads one file. The outer error lists everything that is wrong with it; the inner one is the
/// reason for which a valid artefact is not for this base.
fn parse(
    name: &str,
    bytes: &[u8],
    generation: Generation,
    base: Base<'_>,
) -> Result<Result<Artefact, String>, Vec<String>> {
    let invalid = |error| vec![format!("not a valid safetensors file: {error}")];
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(invalid)?;
    let tensors = SafeTensors::deserialize(bytes).map_err(invalid)?;
    let mut problems = Problems::default();
    let manifest = Manifest::read(&header, &mut problems);
    if !is_word(name) {
        problems.add("its name may hold letters, digits, `-` and `_`".to_owned());
    }
    manifest.require("artefact", name, &mut problems);
    manifest.require("module_generation", &generation.to_string(), &mut problems);
    let dtype = manifest.dtype(&mut problems);
    let other_base = manifest.other_base(base, &mut problems);
    let mut found = BTreeMap::new();
    for (key, view) in tensors.iter() {
        match tensor(key, &view, dtype, base) {
            Ok((site, shape, elements)) => {
                found.insert(site, (shape, elements));
            }
            Err(problem) => problems.add(format!("tensor `{}` {problem}", quoted(key))),
        }
    }
    if tensors.is_empty() {
        problems.add("it has no tensors".to_owned());
    }
    let word = |key| manifest.word(key).to_owned();
    let (method, variant) = (word("method"), word("variant"));
    problems.into_result(())?;
    if let Some(reason) = other_base {
        return Ok(Err(reason));
    }
    let digest = Sha256::digest(bytes).into();
    Ok(Ok(Artefact { name: name.to_owned(), method, variant, digest, tensors: found }))
}

/// The metadata of the file's header; `None` where the header has none.
struct Manifest<'a>(Option<&'a HashMap<String, String>>);

impl<'a> Manifest<'a> {
    /// Takes the metadata, and reports keys that are missing and words that are none.
    fn read(header: &'a Metadata, problems: &mut Problems) -> Self {
        let manifest = Self(header.metadata().as_ref());
        for key in ["artefact", "method", "variant", "module_generation", "dtype"] {
            if manifest.get(key).is_none() {
                problems.add(format!("the manifest has no `{key}`"));
            }
        }
        for key in ["method", "variant"] {
            if manifest.get(key).is_some_and(|value| !is_word(value)) {
                let found = quoted(manifest.word(key));
                problems.add(format!(
                    "`{key}` is `{found}`, expected at most {MAX_WORD_BYTES} letters, digits, `-` and `_`"
                ));
            }
        }
        manifest
    }

    /// The value of a key.
    fn get(&self, key: &str) -> Option<&'a str> {
        self.0?.get(key).map(String::as_str)
    }

    /// The value of a key, empty where it is missing.
    fn word(&self, key: &str) -> &'a str {
        self.get(key).unwrap_or_default()
    }

    /// Reports a value that differs from the expected one. A missing key was reported when the
    /// manifest was read.
    fn require(&self, key: &str, expected: &str, problems: &mut Problems) {
        if let Some(found) = self.get(key).filter(|&found| found != expected) {
            problems.add(format!("`{key}` is `{}`, expected `{expected}`", quoted(found)));
        }
    }

    /// The type that all tensors must have; the file's own header says it per tensor, and both must
    /// agree.
    fn dtype(&self, problems: &mut Problems) -> Option<Dtype> {
        match self.get("dtype")? {
            "F32" => Some(Dtype::F32),
            "F16" => Some(Dtype::F16),
            "BF16" => Some(Dtype::BF16),
            other => {
                problems.add(format!("`dtype` is `{}`, expected F32, F16 or BF16", quoted(other)));
                None
            }
        }
    }

    /// The reason for which the artefact is not for this base: its `base_digest` is another.
    /// Without the key, or where the base's digest is not known, it is taken for any base.
    fn other_base(&self, base: Base<'_>, problems: &mut Problems) -> Option<String> {
        let found = self.get("base_digest")?;
        let lower_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if found.len() != 64 || !found.bytes().all(lower_hex) {
            let found = quoted(found);
            problems.add(format!("`base_digest` is `{found}`, expected 64 hexadecimal digits"));
            return None;
        }
        let expected = Generation(base.digest?).to_string();
        let reason =
            || format!("`base_digest` is `{found}`, the base that is served is `{expected}`");
        (found != expected).then(reason)
    }
}

/// One tensor: the site that its name is, its shape and its elements. At most [`MAX_VECTORS`]
/// vectors of the site's input width are taken.
fn tensor(
    key: &str,
    view: &TensorView<'_>,
    dtype: Option<Dtype>,
    base: Base<'_>,
) -> Result<(Site, Vec<u32>, Elements), String> {
    let site = site_of(key, base.config)
        .ok_or_else(|| "belongs to no projection of the base model".to_owned())?;
    if let Some(expected) = dtype.filter(|&expected| expected != view.dtype()) {
        return Err(format!("has dtype {:?}, the manifest says {expected:?}", view.dtype()));
    }
    let (_, inputs) = base.config.projection_shape(site.projection);
    let limit = inputs * MAX_VECTORS;
    let (shape, count) = (view.shape(), view.shape().iter().product::<usize>());
    if !(1..=MAX_DIMENSIONS).contains(&shape.len()) || !(1..=limit).contains(&count) {
        let shown = &shape[..shape.len().min(MAX_DIMENSIONS + 1)];
        return Err(format!(
            "has {} dimensions {shown:?}, expected 1 to {MAX_DIMENSIONS} with 1 to {limit} elements",
            shape.len()
        ));
    }
    let shape = shape.iter().map(|&length| length as u32).collect();
    Ok((site, shape, elements(view)?))
}

/// True for 1 to [`MAX_WORD_BYTES`] letters, digits, `-` and `_`.
fn is_word(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    (1..=MAX_WORD_BYTES).contains(&text.len()) && text.chars().all(plain)
}

/// The beginning of a value from outside, for a message.
fn quoted(text: &str) -> String {
    let mut short: String = text.chars().take(MAX_QUOTED).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

#[cfg(test)]
pub(crate) mod tests {
    use std::path::Path;

    use polyskill_model::ModelConfig;
    use polyskill_model::config::{
        Activation, Biases, FeedForward, QueryKeyNorm, Rope, RopeScaling,
    };
    use proptest::prelude::*;
    use safetensors::tensor::serialize;

    use super::*;

    const Q: &str = "model.layers.0.self_attn.q_proj";
    const DOWN: &str = "model.layers.1.mlp.down_proj";

    /// Two layers of width 4, 6 inside the feed-forward.
    pub(crate) fn config() -> ModelConfig {
        ModelConfig {
            family: "test",
            vocab_size: 8,
            hidden_size: 4,
            intermediate_size: 6,
            num_layers: 2,
            num_heads: 2,
            num_kv_heads: 1,
            head_dim: 2,
            max_positions: 8,
            norm_epsilon: 1e-5,
            embedding_scale: 1.0,
            rope: Rope { theta: 1e4, scaling: RopeScaling::None },
            local_rope: None,
            biases: Biases { query_key_value: false, attention_output: false, feed_forward: false },
            query_key_norm: QueryKeyNorm::None,
            clip_query_key_value: None,
            attention_scale: 1.0,
            windows: vec![None; 2],
            output_norms: false,
            activation: Activation::Silu,
            feed_forward: FeedForward::Dense,
            tied_embeddings: true,
            bos_token: None,
            eos_tokens: Vec::new(),
        }
    }

    fn generation() -> Generation {
        Generation::of(&[b"module"])
    }

    fn manifest(changes: &[(&str, &str)]) -> HashMap<String, String> {
        let generation = generation().to_string();
        let mut manifest: HashMap<String, String> = [
            ("artefact", "gates"),
            ("method", "phatgoose"),
            ("variant", "sigmoid"),
            ("module_generation", &generation),
            ("dtype", "F32"),
            ("steps", "100"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
        for &(key, value) in changes {
            manifest.remove(key);
            if !value.is_empty() {
                manifest.insert(key.to_owned(), value.to_owned());
            }
        }
        manifest
    }

    fn file(manifest: HashMap<String, String>, tensors: &[(&str, &[usize], &[f32])]) -> Vec<u8> {
        let bytes: Vec<Vec<u8>> = tensors
            .iter()
            .map(|(_, _, values)| values.iter().flat_map(|value| value.to_le_bytes()).collect())
            .collect();
        let views = tensors.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
            (*name, TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap())
        });
        serialize(views, Some(manifest)).unwrap()
    }

    fn good() -> Vec<u8> {
        let down = [0.5; 12];
        file(manifest(&[]), &[(Q, &[4], &[1.0, -2.0, 3.0, 0.0]), (DOWN, &[2, 6], down.as_slice())])
    }

    fn write(folder: &Path, name: &str, bytes: &[u8]) {
        std::fs::create_dir_all(folder.join("module/artefacts")).unwrap();
        std::fs::write(folder.join("module/artefacts").join(name), bytes).unwrap();
    }

    fn read(root: &Path, digest: Option<[u8; 32]>) -> Result<Artefacts, String> {
        let (config, directory) = (config(), root.join("module"));
        let files = Files { name: "m", directory: &directory, root };
        load(files, generation(), Base { config: &config, digest, model: None })
            .map_err(|error| error.to_string())
    }

    /// The refusal of one file named `gates`.
    fn refusal(bytes: &[u8]) -> String {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "gates.safetensors", bytes);
        read(root.path(), None).unwrap_err()
    }

    #[test]
    fn tensors_are_found_by_site() {
        let root = tempfile::tempdir().unwrap();
        assert!(read(&root.path().join("nothing"), None).unwrap().valid.is_empty());
        let bytes = good();
        write(root.path(), "gates.safetensors", &bytes);
        write(root.path(), "gates.partial", b"not read");
        let artefacts = read(root.path(), None).unwrap();
        let [gates] = artefacts.valid.as_slice() else { panic!("{artefacts:?}") };
        assert_eq!(
            (gates.name(), gates.method(), gates.variant()),
            ("gates", "phatgoose", "sigmoid")
        );
        assert_eq!(gates.digest(), <[u8; 32]>::from(Sha256::digest(&bytes)));
        assert_eq!(gates.num_bytes(), 64);
        let sites: Vec<Site> = gates.sites().collect();
        assert_eq!(gates.at(sites[0]).unwrap(), ([4].as_slice(), vec![1.0, -2.0, 3.0, 0.0]));
        assert_eq!(gates.at(sites[1]).unwrap().0, [2, 6]);
        assert!(gates.at(Site::from_index(1)).is_none());
    }

    #[test]
    fn everything_wrong_is_named_at_once() {
        let changes =
            [("module_generation", "00"), ("dtype", "F16"), ("method", "a b"), ("variant", "")];
        let problems = refusal(&file(
            manifest(&changes),
            &[
                (Q, &[4], &[0.0; 4]),
                ("model.layers.2.self_attn.q_proj", &[1], &[0.0]),
                ("model.layers.01.self_attn.q_proj", &[1], &[0.0]),
            ],
        ));
        let expected = [
            "artefacts/gates.safetensors",
            "`module_generation` is `00`",
            &generation().to_string(),
            "tensor `model.layers.0.self_attn.q_proj` has dtype F32, the manifest says F16",
            "tensor `model.layers.2.self_attn.q_proj` belongs to no projection",
            "tensor `model.layers.01.self_attn.q_proj` belongs to no projection",
            "`method` is `a b`",
            "no `variant`",
        ];
        for part in expected {
            assert!(problems.contains(part), "{part}: {problems}");
        }
    }

    #[test]
    fn values_are_finite_and_sizes_bounded() {
        let refused =
            |shape: &[usize], values: &[f32]| refusal(&file(manifest(&[]), &[(Q, shape, values)]));
        assert!(refused(&[2], &[0.0, f32::NAN]).contains("not finite"));
        assert!(refused(&[257], &[0.0; 257]).contains("1 to 256 elements"));
        assert!(refused(&[0], &[]).contains("elements"));
        assert!(refused(&[], &[0.0]).contains("0 dimensions"));
        assert!(refused(&[1; 5], &[0.0]).contains("5 dimensions"));
        assert!(refusal(&file(manifest(&[]), &[])).contains("no tensors"));
        assert!(refusal(&file(HashMap::new(), &[(Q, &[1], &[0.0])])).contains("no `artefact`"));
    }

    #[test]
    fn headers_that_lie_are_refused() {
        let mut long = good();
        long.truncate(long.len() - 4);
        let mut huge = good();
        huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        for bytes in [long, huge, Vec::new(), b"pickle".to_vec()] {
            assert!(refusal(&bytes).contains("not a valid safetensors file"));
        }
    }

    #[test]
    fn names_and_places_are_checked() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "other.safetensors", &good());
        assert!(
            read(root.path(), None)
                .unwrap_err()
                .contains("`artefact` is `gates`, expected `other`")
        );
        let many = tempfile::tempdir().unwrap();
        (0..=MAX_ARTEFACTS).for_each(|at| write(many.path(), &format!("{at}.safetensors"), b""));
        assert!(read(many.path(), None).unwrap_err().contains("more than 16 files"));
        let large = tempfile::tempdir().unwrap();
        write(large.path(), "gates.safetensors", b"");
        let path = large.path().join("module/artefacts/gates.safetensors");
        let options = std::fs::OpenOptions::new().write(true).open(path).unwrap();
        options.set_len(MAX_BYTES + 1).unwrap();
        assert!(read(large.path(), None).unwrap_err().contains("at most"));
    }

    #[cfg(unix)]
    #[test]
    fn links_stay_inside_the_root() {
        use std::os::unix::fs::symlink;
        let (root, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        write(outside.path(), "gates.safetensors", &good());
        let target = outside.path().join("module/artefacts");
        std::fs::create_dir(root.path().join("module")).unwrap();
        symlink(&target, root.path().join("module/artefacts")).unwrap();
        assert!(read(root.path(), None).unwrap_err().contains("outside"));
        std::fs::remove_file(root.path().join("module/artefacts")).unwrap();
        write(root.path(), "ok.partial", b"");
        let link = root.path().join("module/artefacts/gates.safetensors");
        symlink(target.join("gates.safetensors"), link).unwrap();
        assert!(read(root.path(), None).unwrap_err().contains("outside"));
    }

    #[test]
    fn gates_of_another_base_are_left_out() {
        let root = tempfile::tempdir().unwrap();
        let digest = Generation([7; 32]).to_string();
        let bytes = file(manifest(&[("base_digest", &digest)]), &[(Q, &[1], &[0.0])]);
        write(root.path(), "gates.safetensors", &bytes);
        for known in [None, Some([7; 32])] {
            assert_eq!(read(root.path(), known).unwrap().valid.len(), 1);
        }
        let other = read(root.path(), Some([8; 32])).unwrap();
        assert!(other.valid.is_empty() && other.left_out[0].contains(&digest), "{other:?}");
        let bytes = file(manifest(&[("base_digest", "beef")]), &[(Q, &[1], &[0.0])]);
        assert!(refusal(&bytes).contains("64 hexadecimal digits"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn mutated_files_never_panic(
            edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
            keep in prop::sample::select(vec![1.0, 1.0, 0.99, 0.5]),
        ) {
            let mut bytes = good();
            edits.iter().for_each(|(at, byte)| {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            });
            bytes.truncate((bytes.len() as f64 * keep) as usize);
            let config = config();
            if let Ok(Ok(artefact)) = parse("gates", &bytes, generation(), (&config).into()) {
                for site in artefact.sites() {
                    let (shape, values) = artefact.at(site).unwrap();
                    prop_assert_eq!(shape.iter().product::<u32>() as usize, values.len());
                    prop_assert!(values.iter().all(|value| value.is_finite()));
                }
            }
        }
    }
}
