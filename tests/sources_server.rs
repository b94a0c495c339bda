//! One module from every kind of place to the answers of a running server: web servers, S3, the hub, OCI
//! layouts, archives and folders, with pins and signatures.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use polyskill_cli::commands::adapters::{self as adapters_command, AdaptersCommand};
use polyskill_sources::{SIGNATURE_FILE, sign};
use serde_json::{Value as Json, json};
use sha2::{Digest as _, Sha256};

use crate::common::{fixtures, text};
use crate::openai_api::{ADMIN_KEY, Reply, exchange};
use crate::sources::pack;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

/// The module's files, as they are sent and stored.
#[derive(Clone)]
struct Files {
    config: Vec<u8>,
    weights: Vec<u8>,
    archive: Vec<u8>,
}

impl Files {
    fn read(scratch: &Path, key: &Path) -> Self {
        let source = fixtures().join("adapters/lora-basic");
        let read = |name| std::fs::read(source.join(name)).unwrap();
        let module = polyskill_adapters::load_module(
            "basic",
            &source,
            &source,
            crate::common::model("models/llama-tied").config(),
        );
        let signed = sign(&module.unwrap().generation().to_string(), key).unwrap();
        let archive = scratch.join("basic.tar.gz");
        pack(&archive, &[(SIGNATURE_FILE, signed.text.as_bytes())]);
        Self {
            config: read(CONFIG),
            weights: read(WEIGHTS),
            archive: std::fs::read(archive).unwrap(),
        }
    }

    fn digest(&self) -> String {
        sha256(&self.archive)
    }
}

fn sha256(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    Sha256::digest(bytes).iter().for_each(|byte| write!(text, "{byte:02x}").unwrap());
    text
}

/// A web server, a hub and a store behind one address.
fn places(files: Files) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let files = files.clone();
            std::thread::spawn(move || {
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                let Some(Ok(first)) = lines.next() else { return };
                while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
                let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
                let (status, body) = place(&path, &files);
                let head = format!(
                    "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\nETag: \"e\"\r\n\
                     Last-Modified: Mon, 01 Jan 2024 00:00:00 GMT\r\n\r\n",
                    body.len()
                );
                // A client that goes away is none of this test's business.
                let _ = stream.write_all(&[head.as_bytes(), &body].concat());
            });
        }
    });
    address
}

fn place(path: &str, files: &Files) -> (&'static str, Vec<u8>) {
    const OK: &str = "200 OK";
    let object = |name: &str, size: usize| {
        format!(
            "<Contents><Key>modules/basic/{name}</Key><LastModified>2024-01-01T00:00:00.000Z\
             </LastModified><ETag>\"e\"</ETag><Size>{size}</Size></Contents>"
        )
    };
    match path {
        "/files/basic.tar.gz" => (OK, files.archive.clone()),
        "/api/models/acme/basic/revision/main" => {
            let siblings = [CONFIG, WEIGHTS].map(|file| json!({"rfilename": file}));
            (OK, json!({"sha": COMMIT, "siblings": siblings}).to_string().into_bytes())
        }
        _ if path.contains("list-type=2") => {
            let objects =
                [object(CONFIG, files.config.len()), object(WEIGHTS, files.weights.len())].concat();
            let list = format!(
                "<ListBucketResult><IsTruncated>false</IsTruncated>{objects}</ListBucketResult>"
            );
            (OK, list.into_bytes())
        }
        _ if path.ends_with(CONFIG) => (OK, files.config.clone()),
        _ if path.ends_with(WEIGHTS) => (OK, files.weights.clone()),
        _ => ("404 Not Found", Vec::new()),
    }
}

/// An OCI layout with the module as one image.
fn oci_layout(directory: &Path, files: &Files) {
    std::fs::create_dir_all(directory.join("blobs/sha256")).unwrap();
    let blob = |bytes: &[u8], media_type: &str| {
        let digest = sha256(bytes);
        std::fs::write(directory.join("blobs/sha256").join(&digest), bytes).unwrap();
        json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len()})
    };
    let layer = blob(&files.archive, "application/vnd.oci.image.layer.v1.tar+gzip");
    let config = blob(b"{}", "application/vnd.oci.empty.v1+json");
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer]}).to_string();
    let image = blob(manifest.as_bytes(), "application/vnd.oci.image.manifest.v1+json");
    let index = json!({"schemaVersion": 2, "manifests": [image]});
    std::fs::write(directory.join("index.json"), index.to_string()).unwrap();
    std::fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).unwrap();
}

/// The program as an operator runs it; it ends with the test.
struct Program {
    child: Child,
    address: SocketAddr,
}

impl Program {
    fn start(config: &Path, places: SocketAddr) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_polyskill"))
            .args(["serve", "--until-input-ends", "--listen", "127.0.0.1:0", "--config"])
            .arg(config)
            .env("HF_ENDPOINT", format!("http://{places}"))
            .env("AWS_ENDPOINT", format!("http://{places}"))
            .env("AWS_ALLOW_HTTP", "true")
            .env("AWS_REGION", "here")
            .env("AWS_ACCESS_KEY_ID", "key")
            .env("AWS_SECRET_ACCESS_KEY", "secret")
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap());
        let mut all = String::new();
        let address = loop {
            let before = all.len();
            assert!(said.read_line(&mut all).unwrap() > 0, "it ended before it served: {all}");
            if let Some((_, address)) = all[before..].trim_end().split_once(" on http://") {
                break address.parse().unwrap();
            }
        };
        // A full pipe would stop the program.
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        Self { child, address }
    }

    fn send(&self, path: &str, body: &Json) -> Reply {
        let key = path.starts_with("/admin").then_some(ADMIN_KEY);
        exchange(self.address, "POST", path, key, body.to_string())
    }

    fn load(&self, name: &str, source: &str) -> Reply {
        self.send("/admin/modules", &json!({"name": name, "source": source}))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

#[test]
fn a_module_from_everywhere_answers_alike() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("root");
    std::fs::create_dir(&root).unwrap();
    let key = scratch.path().join("key");
    let public = polyskill_plugin::new_key(&key).unwrap();
    let files = Files::read(scratch.path(), &key);
    oci_layout(&root.join("layout"), &files);
    std::fs::write(root.join("basic.tar.gz"), &files.archive).unwrap();
    crate::library::copy("lora-basic", &root.join("folder"));
    std::fs::copy(fixtures().join("gguf/lora-basic-f32.gguf"), root.join("signed.gguf")).unwrap();
    for module in ["signed.gguf", "folder"] {
        let command =
            AdaptersCommand::Sign { module: root.join(module), key: key.clone(), new_key: false };
        adapters_command::run(&command, &mut Vec::new()).unwrap();
    }
    let places = places(files.clone());
    let config = scratch.path().join("polyskill.toml");
    let toml = format!(
        "model = {model:?}\nserved_model_name = \"base\"\nadmin_key = {ADMIN_KEY:?}\n\
         state = {state:?}\n[sources]\nroots = [{root:?}]\nplain_http = [\"{places}\"]\n\
         hosts = []\nhub_hosts = [\"{places}\"]\nstores = [\"s3://bucket/modules\"]\n\
         repositories = [\"acme/*\"]\n[module_trust]\n\
         keys = [{{ key = \"{public}\", prefix = \"signed\" }}]\n\
         namespaces = [{{ prefix = \"signed\", signature = \"required\" }}]\n",
        model = fixtures().join("models/llama-tied"),
        state = scratch.path().join("state"),
    );
    std::fs::write(&config, toml).unwrap();
    let program = Program::start(&config, places);
    let (web, pin) = (format!("http://{places}/files/basic.tar.gz"), files.digest());
    let sources = [
        ("folder", root.join("folder").display().to_string()),
        ("archive", root.join("basic.tar.gz").display().to_string()),
        ("web", web.clone()),
        ("pinned", format!("{web}#sha256={pin}")),
        ("signed-web", web.clone()),
        ("store", "s3://bucket/modules/basic/".to_owned()),
        ("hub", "hf://acme/basic".to_owned()),
        ("oci", format!("oci:{}", root.join("layout").display())),
    ];
    let gguf = program.load("signed-gguf", &root.join("signed.gguf").display().to_string());
    assert!(gguf.status == 200 && gguf.ok()["signer"] == public, "{}", gguf.body);
    let mut said = std::collections::BTreeSet::new();
    let ask = |program: &Program, name: &str| {
        let body =
            json!({"model": name, "prompt": "hello world", "max_tokens": 6, "temperature": 0});
        let reply = program.send("/v1/completions", &body).ok();
        let generation = text(&reply["polyskill"]["modules"][0], "generation").to_owned();
        (text(&reply["choices"][0], "text").to_owned(), generation)
    };
    for (name, source) in &sources {
        let loaded = program.load(name, source);
        assert_eq!(loaded.status, 200, "{name}: {}", loaded.body);
        let signer = &loaded.ok()["signer"];
        // Keys count for the names that they are listed for.
        assert_eq!(signer.as_str() == Some(&*public), *name == "signed-web", "{name}: {signer}");
        said.insert(ask(&program, name));
    }
    assert_eq!(said.len(), 1, "{said:?}");
    for (name, source, code, status) in [
        ("x", format!("{web}#sha256={}", "0".repeat(64)), "lora_digest_mismatch", 400),
        ("x", format!("http://{places}/files/none.tar.gz"), "lora_source_not_found", 404),
        ("x", "http://127.0.0.1:9/files/basic.tar.gz".to_owned(), "lora_source_not_allowed", 400),
        ("x", "s3://bucket/others/basic/".to_owned(), "lora_source_not_allowed", 400),
        ("x", "hf://others/basic".to_owned(), "lora_source_not_allowed", 400),
        ("signed-x", "hf://acme/basic".to_owned(), "lora_adapter_not_trusted", 400),
        ("web", web, "lora_adapter_already_loaded", 400),
    ] {
        let refused = program.load(name, &source);
        assert_eq!(refused.status, status, "{source}: {}", refused.body);
        let error: Json = serde_json::from_str(&refused.body).unwrap();
        assert_eq!(error["error"]["code"], code, "{source}: {error}");
    }
    // A signature counts for the names that its key is listed for, by whatever name a module is asked.
    let alias = |alias: &str, of: &str| {
        program.send("/admin/modules", &json!({"name": alias, "alias_of": of}))
    };
    assert_eq!(alias("signed-too", "signed-web").status, 200);
    let refused = alias("signed-not", "hub");
    assert_eq!(refused.json()["error"]["code"], "lora_adapter_not_trusted", "{}", refused.body);
    let unsigned = json!({"name": "signed-web", "source": "hf://acme/basic", "replace": true});
    assert_eq!(program.send("/admin/modules", &unsigned).status, 400);
    // What was fetched serves again, though the places are gone.
    drop(program);
    let nowhere: SocketAddr = "127.0.0.1:9".parse().unwrap();
    let again = Program::start(&config, nowhere);
    said.extend(sources.iter().map(|(name, _)| ask(&again, name)));
    assert_eq!(said.len(), 1, "{said:?}");
}
