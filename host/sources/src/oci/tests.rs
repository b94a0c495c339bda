//! Layouts as tools write them, and layouts that are made to do harm.

use std::path::PathBuf;

use proptest::prelude::*;
use serde_json::{Value as Json, json};
use sha2::{Digest as _, Sha256};

use super::super::testing::{Fixture, gzip, module_files, tar, tar_gz};
use super::super::{FetchLimits, Fetched, Format, SourceError};
use super::*;

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

/// A layout that is being written.
struct Layout {
    directory: PathBuf,
}

impl Layout {
    fn new(fixture: &Fixture) -> Self {
        let directory = fixture.root().join("layout");
        std::fs::create_dir_all(directory.join("blobs/sha256")).unwrap();
        std::fs::write(directory.join(LAYOUT_FILE), r#"{"imageLayoutVersion": "1.0.0"}"#).unwrap();
        Self { directory }
    }

    fn path(&self, digest: &str) -> PathBuf {
        self.directory.join("blobs").join(digest.replace(':', "/"))
    }

    /// Writes a blob; returns its descriptor.
    fn blob(&self, bytes: &[u8], media_type: &str, annotations: &Json) -> Json {
        let digest = format!("sha256:{}", hex(&Sha256::digest(bytes)));
        std::fs::write(self.path(&digest), bytes).unwrap();
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len(), "annotations": annotations})
    }

    fn archive(&self, bytes: &[u8]) -> Json {
        self.blob(bytes, "application/vnd.oci.image.layer.v1.tar+gzip", &json!({}))
    }

    fn file(&self, title: &str, bytes: &[u8]) -> Json {
        self.blob(bytes, "application/octet-stream", &json!({TITLE: title}))
    }

    fn image(&self, layers: &[Json], annotations: &Json) -> Json {
        let config = self.blob(b"{}", "application/vnd.oci.empty.v1+json", &json!({}));
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers});
        self.blob(manifest.to_string().as_bytes(), MANIFEST_TYPE, annotations)
    }

    fn index(&self, images: &[Json]) {
        let index = json!({"schemaVersion": 2, "manifests": images});
        std::fs::write(self.directory.join(INDEX_FILE), index.to_string()).unwrap();
    }

    /// One image of files with titles.
    fn titled(&self, files: &[(String, Vec<u8>)]) {
        let layers: Vec<Json> = files.iter().map(|(name, bytes)| self.file(name, bytes)).collect();
        self.index(&[self.image(&layers, &json!({}))]);
    }
}

impl Fixture {
    async fn layout(&self, image: &str) -> Result<Fetched, SourceError> {
        self.fetch_text(&format!("oci:{}{image}", self.root().join("layout").display())).await
    }

    async fn refuses_layout(&self, image: &str, reason: &str) {
        let message = self.layout(image).await.unwrap_err().to_string();
        assert!(message.contains(reason), "expected {reason}: {message}");
        assert_eq!(self.staged(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn layers_are_archives_or_files_with_a_title() {
    let fixture = Fixture::new();
    let layout = Layout::new(&fixture);
    let unpacked = json!({TITLE: "module", IS_FOLDER: "true"});
    let split: Vec<_> = module_files("").into_iter().map(|file| vec![file]).collect();
    let files: Vec<Json> =
        module_files("").iter().map(|(n, bytes)| layout.file(n, bytes)).collect();
    let more =
        [layout.file("run.sh", b"ignored"), layout.file("artefacts/a.safetensors", b"gates")];
    for (layers, expected) in [
        (vec![layout.archive(&tar_gz(&module_files("module/")))], (3, 0)),
        (vec![layout.archive(&tar(&module_files("")))], (3, 0)),
        (split.iter().map(|files| layout.archive(&tar_gz(files))).collect(), (3, 0)),
        (files.clone(), (3, 0)),
        ([files.as_slice(), &more].concat(), (4, 1)),
        (vec![layout.blob(&tar_gz(&module_files("module/")), "application/x", &unpacked)], (3, 0)),
    ] {
        let image = layout.image(&layers, &json!({}));
        layout.index(std::slice::from_ref(&image));
        let fetched = fixture.layout("").await.unwrap();
        assert_eq!((fetched.files, fetched.ignored), expected);
        assert_eq!(fetched.format, Format::Peft);
        assert_eq!(fetched.origin.digest.as_deref(), image["digest"].as_str());
        let weights = fetched.directory.join("adapter_model.safetensors");
        assert_eq!(std::fs::read(weights).unwrap(), b"the weights");
    }
}

#[tokio::test]
async fn images_are_chosen_by_reference_or_digest() {
    let fixture = Fixture::new();
    let layout = Layout::new(&fixture);
    let image = |reference: &str, weights: &[u8]| {
        let layers = [
            layout.file("adapter_config.json", b"{}"),
            layout.file("adapter_model.safetensors", weights),
        ];
        layout.image(&layers, &json!({REFERENCE: reference}))
    };
    let (one, two) = (image("v1", b"one"), image("v2", b"two"));
    let nested = json!({"schemaVersion": 2, "manifests": [one]});
    let nested = layout.blob(nested.to_string().as_bytes(), INDEX_TYPE, &json!({REFERENCE: "all"}));
    layout.index(&[one.clone(), two.clone(), nested]);
    let digest = |image: &Json| image["digest"].as_str().unwrap().to_owned();
    for (wanted, weights) in
        [(":v1", "one"), (":v2", "two"), (":all", "one"), (&format!("@{}", digest(&two)), "two")]
    {
        let fetched = fixture.layout(wanted).await.unwrap();
        let path = fetched.directory.join("adapter_model.safetensors");
        assert_eq!(std::fs::read_to_string(path).unwrap(), weights, "{wanted}");
    }
    fixture.refuses_layout("", "3 images fit").await;
    fixture.refuses_layout(":v3", "no image has the reference `v3`").await;
    fixture.refuses_layout(&format!("@sha256:{}", "0".repeat(64)), "no such image").await;
}

#[tokio::test]
async fn blobs_have_the_digest_and_size_that_name_them() {
    let fixture = Fixture::new();
    let layout = Layout::new(&fixture);
    let archive = tar_gz(&module_files(""));
    let layer = layout.archive(&archive);
    let image = layout.image(std::slice::from_ref(&layer), &json!({}));
    layout.index(std::slice::from_ref(&image));
    assert!(fixture.layout("").await.is_ok());
    let files = module_files("");
    for blob in [&layer, &image] {
        let path = layout.path(blob["digest"].as_str().unwrap());
        let right = std::fs::read(&path).unwrap();
        let mut wrong = right.clone();
        wrong[right.len() / 2] ^= 0x20;
        std::fs::write(&path, wrong).unwrap();
        fixture.refuses_layout("", "expected sha256:").await;
        std::fs::write(&path, &right[1..]).unwrap();
        fixture.refuses_layout("", "bytes, expected").await;
        std::fs::remove_file(&path).unwrap();
        fixture.refuses_layout("", "blobs/sha256").await;
        std::fs::write(&path, right).unwrap();
    }
    // Other content under a file's digest.
    layout.titled(&files);
    let digest = format!("sha256:{}", hex(&Sha256::digest(b"the weights")));
    std::fs::write(layout.path(&digest), b"the Weights").unwrap();
    fixture.refuses_layout("", "expected sha256:").await;
}

#[tokio::test]
async fn hostile_layouts_are_refused() {
    let mut fixture = Fixture::new();
    let layout = Layout::new(&fixture);
    for digest in ["sha256:../../../../etc/passwd", "sha512:00", "", "sha256:"] {
        layout.index(&[json!({"digest": digest, "size": 2})]);
        fixture.refuses_layout("", "expected sha256:HEX").await;
    }
    let with = |more: (&str, &[u8])| {
        let mut files = module_files("");
        files.push((more.0.to_owned(), more.1.to_vec()));
        layout.titled(&files);
    };
    with(("../../adapter_config.json", b"{}"));
    fixture.refuses_layout("", "has `..` in its name").await;
    with(("/etc/cron.d/x", b"{}"));
    fixture.refuses_layout("", "is absolute").await;
    with(("./adapter_config.json", b"{}"));
    fixture.refuses_layout("", "is there twice").await;
    layout.titled(&[("adapter_config.json".to_owned(), vec![]), ("x.pt".to_owned(), vec![])]);
    fixture.refuses_layout("", "`x.pt` is a pickle").await;
    let bomb = gzip(&tar(&[("README.md".to_owned(), vec![0; 64 << 20])]));
    layout.index(&[layout.image(&[layout.archive(&bomb)], &json!({}))]);
    fixture.refuses_layout("", "max_ratio").await;
    layout.index(&vec![layout.image(&[], &json!({})); 2]);
    fixture.refuses_layout("", "2 images fit").await;
    std::fs::write(layout.directory.join(INDEX_FILE), vec![b' '; (1 << 20) + 1]).unwrap();
    fixture.refuses_layout("", "more than 1048576 bytes").await;
    std::fs::write(layout.directory.join(INDEX_FILE), "[]").unwrap();
    fixture.refuses_layout("", "index.json is not as expected").await;
    layout.titled(&module_files(""));
    let default = fixture.limits.clone();
    for (limits, field) in [
        (FetchLimits { max_file_bytes: 10, ..default.clone() }, "max_file_bytes"),
        (FetchLimits { max_total_bytes: 15, ..default.clone() }, "max_total_bytes"),
        (FetchLimits { max_files: 2, ..default.clone() }, "max_files"),
        (FetchLimits { max_entries: 2, ..default.clone() }, "max_entries"),
    ] {
        fixture.limits = limits;
        fixture.refuses_layout("", field).await;
    }
    fixture.limits = default;
    std::fs::write(layout.directory.join(LAYOUT_FILE), r#"{"imageLayoutVersion": "2"}"#).unwrap();
    fixture.refuses_layout("", "version `2`").await;
}

#[cfg(unix)]
#[tokio::test]
async fn links_lead_to_no_blob() {
    use std::os::unix::fs::symlink;
    let fixture = Fixture::new();
    let layout = Layout::new(&fixture);
    layout.titled(&module_files(""));
    let digest = format!("sha256:{}", hex(&Sha256::digest(b"the weights")));
    let outside = fixture.directory.path().join("outside");
    std::fs::rename(layout.path(&digest), &outside).unwrap();
    symlink(&outside, layout.path(&digest)).unwrap();
    fixture.refuses_layout("", "is a link or no plain file").await;
    std::fs::remove_file(layout.path(&digest)).unwrap();
    std::fs::rename(&outside, layout.path(&digest)).unwrap();
    assert!(fixture.layout("").await.is_ok());
    let blobs = layout.directory.join("blobs");
    std::fs::rename(&blobs, &outside).unwrap();
    symlink(&outside, &blobs).unwrap();
    fixture.refuses_layout("", "leads out of the layout").await;
}

proptest! {
    /// No panic, and nothing outside the staging directory.
    #[test]
    fn mutated_indexes_and_manifests_are_refused_or_read(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        in_manifest in any::<bool>(),
    ) {
        let fixture = Fixture::new();
        let layout = Layout::new(&fixture);
        let files = module_files("");
        let layers: Vec<Json> = files.iter().map(|(name, bytes)| layout.file(name, bytes)).collect();
        let edit = |bytes: &mut Vec<u8>| {
            for (at, byte) in &edits {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
        };
        let mut image = json!({"schemaVersion": 2, "layers": layers}).to_string().into_bytes();
        if in_manifest {
            edit(&mut image);
        }
        layout.index(&[layout.blob(&image, MANIFEST_TYPE, &json!({REFERENCE: "v1"}))]);
        if !in_manifest {
            let path = layout.directory.join(INDEX_FILE);
            let mut index = std::fs::read(&path).unwrap();
            edit(&mut index);
            std::fs::write(&path, index).unwrap();
        }
        let before = fixture.names(&fixture.root());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        if let Ok(fetched) = runtime.block_on(fixture.layout("")) {
            prop_assert!(fetched.directory.starts_with(fixture.staging()));
            prop_assert_eq!(fixture.names(&fetched.directory).len(), fetched.files);
        }
        prop_assert_eq!(fixture.names(&fixture.root()), before);
        prop_assert_eq!(fixture.staged(), Vec::<String>::new());
    }
}
