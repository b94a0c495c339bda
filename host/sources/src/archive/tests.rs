//! Archives as they should be, and archives that are made to do harm.

use std::io::Write as _;
use std::path::Path;

use flate2::Compression;
use flate2::write::DeflateEncoder;
use proptest::prelude::*;
use tar::{EntryType, Header};

use crate::testing::{Fixture, gzip, module_files, tar, tar_gz};
use crate::{FetchLimits, Fetched, Format, SourceError, unpack};

type Files = Vec<(String, Vec<u8>)>;

impl Fixture {
    fn unpack(&self, name: &str, bytes: &[u8]) -> Result<Fetched, SourceError> {
        let path = self.directory.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        unpack(&path, &self.limits, &self.staging())
    }

    /// The archive is refused for a reason and leaves nothing.
    fn refuses(&self, bytes: &[u8], reason: &str) {
        let message = self.unpack("archive", bytes).unwrap_err().to_string();
        assert!(message.contains(reason), "expected {reason}: {message}");
        assert_eq!(self.staged(), Vec::<String>::new());
        assert_eq!(self.names(self.directory.path()), ["archive", "staging/.lock"]);
    }
}

fn module() -> Files {
    module_files("")
}

fn and(mut files: Files, name: &str, bytes: &[u8]) -> Files {
    files.push((name.to_owned(), bytes.to_vec()));
    files
}

/// One entry with a header that nothing checks.
fn tar_entry(name: &str, kind: EntryType, size: u64, bytes: &[u8]) -> Vec<u8> {
    let mut header = Header::new_ustar();
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(0o644);
    if kind.is_symlink() || kind.is_hard_link() {
        header.set_link_name("/etc/passwd").unwrap();
    }
    header.set_cksum();
    let mut entry = header.as_bytes().to_vec();
    entry.extend_from_slice(bytes);
    entry.resize(entry.len().next_multiple_of(512), 0);
    entry
}

fn plain(name: &str, bytes: &[u8]) -> Vec<u8> {
    tar_entry(name, EntryType::Regular, bytes.len() as u64, bytes)
}

/// Entries before those of a module.
fn tar_with(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut archive = entries.concat();
    archive.extend(tar(&module()));
    archive
}

/// A file in a zip, with what its headers say.
#[derive(Clone)]
struct Zipped {
    name: String,
    data: Vec<u8>,
    method: u16,
    flags: u16,
    mode: u32,
    crc: u32,
    size: u32,
    local_size: u32,
}

impl Zipped {
    fn new(name: &str, bytes: &[u8], deflate: bool) -> Self {
        let mut crc = flate2::Crc::new();
        crc.update(bytes);
        let data = match deflate {
            false => bytes.to_vec(),
            true => {
                let mut encoder = DeflateEncoder::new(Vec::new(), Compression::best());
                encoder.write_all(bytes).unwrap();
                encoder.finish().unwrap()
            }
        };
        Self {
            name: name.to_owned(),
            data,
            method: if deflate { 8 } else { 0 },
            flags: 0,
            mode: 0o100_644,
            crc: crc.sum(),
            size: bytes.len() as u32,
            local_size: bytes.len() as u32,
        }
    }

    fn fields(&self, size: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        for field in [20, self.flags, self.method, 0, 0] {
            bytes.extend(u16::to_le_bytes(field));
        }
        for field in [self.crc, self.data.len() as u32, size] {
            bytes.extend(u32::to_le_bytes(field));
        }
        bytes.extend((self.name.len() as u16).to_le_bytes());
        bytes
    }
}

fn zip(files: &[Zipped]) -> Vec<u8> {
    let (mut archive, mut directory) = (Vec::new(), Vec::new());
    for file in files {
        let offset = archive.len() as u32;
        archive.extend(b"PK\x03\x04");
        archive.extend(file.fields(file.local_size));
        archive.extend([0; 2]);
        archive.extend(file.name.as_bytes());
        archive.extend(&file.data);
        directory.extend(b"PK\x01\x02\x14\x03");
        directory.extend(file.fields(file.size));
        directory.extend([0; 8]);
        directory.extend((file.mode << 16).to_le_bytes());
        directory.extend(offset.to_le_bytes());
        directory.extend(file.name.as_bytes());
    }
    let (start, bytes) = (archive.len() as u32, directory.len() as u32);
    archive.extend(directory);
    archive.extend(b"PK\x05\x06\0\0\0\0");
    archive.extend((files.len() as u16).to_le_bytes().repeat(2));
    archive.extend(bytes.to_le_bytes());
    archive.extend(start.to_le_bytes());
    archive.extend([0; 2]);
    archive
}

fn zip_of(files: &Files, deflate: bool) -> Vec<u8> {
    let files: Vec<Zipped> =
        files.iter().map(|(name, bytes)| Zipped::new(name, bytes, deflate)).collect();
    zip(&files)
}

/// A zip of a module with one more file.
fn zip_with(change: impl FnOnce(&mut Zipped), name: &str) -> Vec<u8> {
    let mut files: Vec<Zipped> =
        module().iter().map(|(name, bytes)| Zipped::new(name, bytes, true)).collect();
    let mut more = Zipped::new(name, b"some more bytes", false);
    change(&mut more);
    files.push(more);
    zip(&files)
}

#[test]
fn a_module_comes_out_of_every_kind_of_archive() {
    let fixture = Fixture::new();
    for top in ["", "./", "top/"] {
        let mut files = module_files(top);
        for name in ["artefacts/gates.safetensors", "module.sig"] {
            files = and(files, &format!("{top}{name}"), b"more");
        }
        let parts = fixture.names_of(&files, top);
        for other in ["run.sh", "adapter_model.bin", "optimizer.pt", "artefacts/x/y.safetensors"] {
            files = and(files, &format!("{top}{other}"), b"not unpacked");
        }
        for archive in [tar(&files), tar_gz(&files), zip_of(&files, false), zip_of(&files, true)] {
            let fetched = fixture.unpack("archive", &archive).unwrap();
            assert_eq!((&fetched.format, fetched.files, fetched.ignored), (&Format::Peft, 5, 4));
            assert_eq!(fixture.names(&fetched.directory), parts);
            assert_eq!(fetched.signature().unwrap().as_deref(), Some(b"more".as_slice()));
            let weights = fetched.directory.join("adapter_model.safetensors");
            assert_eq!(std::fs::read(weights).unwrap(), b"the weights");
            assert_eq!(fetched.bytes, 7 + 2 + 11 + 2 * 4);
        }
    }
    assert_eq!(fixture.staged(), Vec::<String>::new());
}

impl Fixture {
    /// The names of files without the folder that they lie in, ascending.
    fn names_of(&self, files: &Files, top: &str) -> Vec<String> {
        let mut names: Vec<String> =
            files.iter().map(|(name, _)| name.strip_prefix(top).unwrap().to_owned()).collect();
        names.sort();
        names
    }
}

#[test]
fn archives_of_common_programs_are_read() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/archives");
    let fixture = Fixture::new();
    for name in
        ["gnu.tar", "gnu.tar.gz", "pax.tar.gz", "ustar.tar", "v7.tar", "python.zip", "streamed.zip"]
    {
        let fetched = unpack(&folder.join(name), &fixture.limits, &fixture.staging());
        let fetched = fetched.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!((&fetched.format, fetched.files), (&Format::Peft, 4), "{name}");
        let weights = std::fs::read(fetched.directory.join("adapter_model.safetensors")).unwrap();
        assert_eq!(weights, b"weights ".repeat(200), "{name}");
    }
}

#[test]
fn a_gguf_file_and_our_own_format_are_modules() {
    let fixture = Fixture::new();
    let fetched = fixture.unpack("x.gguf", b"GGUF and so on").unwrap();
    assert_eq!(fetched.format, Format::Gguf("x.gguf".to_owned()));
    let fetched = fixture.unpack("no name.bin", b"GGUF and so on").unwrap();
    assert_eq!(fetched.format, Format::Gguf("adapter.gguf".to_owned()));
    let files = and(and(Vec::new(), "a/b.gguf", b"GGUF"), "a/README.md", b"A card.");
    let fetched = fixture.unpack("archive", &tar_gz(&files)).unwrap();
    assert_eq!((fetched.format, fetched.files), (Format::Gguf("b.gguf".to_owned()), 2));
    let files = and(module(), "polyskill_config.json", b"{}");
    let files = and(and(files, "polyskill_module.safetensors", b"ours"), "b.gguf", b"GGUF");
    let fetched = fixture.unpack("archive", &tar_gz(&files)).unwrap();
    assert_eq!((&fetched.format, fetched.files, fetched.ignored), (&Format::Polyskill, 5, 1));
    assert!(!fetched.directory.join("b.gguf").exists());
}

#[test]
fn a_fetched_module_can_be_moved_to_its_place() {
    let fixture = Fixture::new();
    let target = fixture.root().join("placed");
    let placed = fixture.unpack("archive", &tar(&module())).unwrap().persist(&target).unwrap();
    assert_eq!(placed.directory, target);
    assert_eq!(fixture.names(&target).len(), 3);
    assert_eq!(fixture.staged(), Vec::<String>::new());
    let again = fixture.unpack("archive", &tar(&module())).unwrap();
    assert!(again.persist(&target).is_err(), "nothing is written over");
}

#[test]
fn what_holds_no_module_is_refused_with_what_is_missing() {
    let fixture = Fixture::new();
    fixture.refuses(b"", "expected tar, tar.gz, zip or GGUF");
    fixture.refuses(b"\x28\xb5\x2f\xfd....", "zstd");
    fixture.refuses(&[0; 1024], "found no module");
    fixture.refuses(&zip(&[]), "found no module");
    fixture.refuses(&gzip(b"not a tar"), "not readable");
    let pickled = and(Vec::new(), "adapter_config.json", b"{}");
    for pickle in ["adapter_model.bin", "x.pt", "x.pkl", "x.pth", "x.ckpt"] {
        let files = and(pickled.clone(), pickle, b"pickle");
        fixture.refuses(&tar_gz(&files), &format!("`{pickle}` is a pickle"));
        fixture.refuses(&zip_of(&files, true), &format!("`{pickle}` is a pickle"));
    }
    let two = and(module_files("a/"), "b/module.sig", b"");
    fixture.refuses(&tar(&two), "lie in different folders");
}

#[test]
fn hostile_names_and_kinds_in_tars_are_refused() {
    let fixture = Fixture::new();
    for (entry, reason) in [
        (plain("../adapter_config.json", b"{}"), "has `..` in its name"),
        (plain("a/../../notes.txt", b"{}"), "has `..` in its name"),
        (plain("/etc/notes.txt", b"{}"), "is absolute"),
        (plain("C:\\notes.txt", b"{}"), "is absolute"),
        (plain("a\\..\\notes.txt", b"{}"), "backslash"),
        (tar_entry("../x", EntryType::Directory, 0, b""), "has `..` in its name"),
        (tar_entry("notes.txt", EntryType::Symlink, 0, b""), "a symbolic link"),
        (tar_entry("artefacts", EntryType::Symlink, 0, b""), "a symbolic link"),
        (tar_entry("adapter_config.json", EntryType::Link, 0, b""), "a hard link"),
        (tar_entry("notes.txt", EntryType::Char, 0, b""), "a device"),
        (tar_entry("notes.txt", EntryType::Block, 0, b""), "a device"),
        (tar_entry("notes.txt", EntryType::Fifo, 0, b""), "a pipe"),
        (tar_entry("notes.txt", EntryType::GNUSparse, 0, b""), "a sparse file"),
        (tar_entry("notes.txt", EntryType::new(b'Z'), 0, b""), "of the type 0x5a"),
        (plain("adapter_config.json", b"{}"), "`adapter_config.json` is there twice"),
        (plain("./adapter_config.json", b"{}"), "`adapter_config.json` is there twice"),
    ] {
        fixture.refuses(&tar_with(std::slice::from_ref(&entry)), reason);
        fixture.refuses(&gzip(&tar_with(&[entry])), reason);
    }
}

#[test]
fn extended_headers_of_tars_are_bounded_and_cannot_hide_names() {
    let fixture = Fixture::new();
    let pax = |record: &str| {
        let line = format!("{} {record}\n", record.len() + 4);
        assert_eq!(line.len(), record.len() + 4);
        tar_entry("PaxHeaders/x", EntryType::XHeader, line.len() as u64, line.as_bytes())
    };
    let long = |name: &str| {
        let size = name.len() as u64;
        tar_entry("././@LongLink", EntryType::GNULongName, size, name.as_bytes())
    };
    for (entries, reason) in [
        ([pax("path=../../notes"), plain("notes", b"")], "has `..` in its name"),
        ([long("/etc/notes\0"), plain("notes", b"")], "is absolute"),
        ([pax("size=00000000000"), plain("notes", b"")], "sets `size`"),
        ([pax("GNU.sparse.major=1"), plain("notes", b"")], "sets `GNU.sparse.major`"),
        ([long(&"a".repeat(5_000)), plain("notes", b"")], "an extended header has 5000 bytes"),
    ] {
        fixture.refuses(&tar_with(&entries), reason);
    }
    let size = 1 << 40;
    let endless = tar_entry("x", EntryType::XHeader, size, b"");
    fixture.refuses(&tar_with(&[endless]), "an extended header has 1099511627776 bytes");
    let named = [pax("path=top/run.sh"), plain("cut off", b""), long("more\0"), plain("x", b"")];
    let fetched = fixture.unpack("archive", &tar_with(&named)).unwrap();
    assert_eq!((fetched.files, fetched.ignored), (3, 2));
}

#[test]
fn tars_are_bounded() {
    let mut fixture = Fixture::new();
    let many = (0..100_000).flat_map(|n| plain(&n.to_string(), b"")).collect::<Vec<u8>>();
    fixture.refuses(&gzip(&many), "entries of the archive: more than 4096");
    // The longest size that a header can say, and one that is merely more than there is.
    let huge = tar_entry("notes", EntryType::Regular, u64::MAX >> 1, b"");
    fixture.refuses(&huge, "not readable");
    let huge = tar_entry("adapter_config.json", EntryType::Regular, u64::MAX >> 1, b"");
    fixture.refuses(&huge, "max_file_bytes");
    let lying = tar_entry("adapter_config.json", EntryType::Regular, 4_096, b"{}");
    fixture.refuses(&lying, "fewer bytes than the 4096 declared");
    let whole = tar(&module());
    fixture.refuses(&whole[..700], "not readable");
    fixture.refuses(&gzip(&whole)[..60], "not readable");
    let mut broken = gzip(&whole);
    let end = broken.len();
    broken[end - 6] ^= 1;
    fixture.refuses(&broken, "not readable");
    let bomb = and(module(), "notes", &vec![0; 64 << 20]);
    fixture.refuses(&tar_gz(&bomb), "which `max_ratio` allows");
    let bomb = and(module(), "artefacts/a.safetensors", &vec![0; 64 << 20]);
    fixture.refuses(&tar_gz(&bomb), "which `max_ratio` allows");
    let default = fixture.limits.clone();
    for (limits, field) in [
        (FetchLimits { max_file_bytes: 10, ..default.clone() }, "max_file_bytes"),
        (FetchLimits { max_total_bytes: 600, ..default.clone() }, "max_total_bytes"),
        (FetchLimits { max_files: 2, ..default }, "max_files"),
    ] {
        fixture.limits = limits;
        fixture.refuses(&tar_gz(&module()), field);
    }
}

#[test]
fn hostile_entries_of_zips_are_refused() {
    let fixture = Fixture::new();
    let same = |_: &mut Zipped| {};
    let part = "artefacts/a.safetensors";
    for (archive, reason) in [
        (zip_with(same, "../notes.txt"), "has `..` in its name"),
        (zip_with(same, "/notes.txt"), "is absolute"),
        (zip_with(same, "a\\notes.txt"), "backslash"),
        (zip_with(same, "../"), "has `..` in its name"),
        (zip_with(same, "adapter_config.json"), "`adapter_config.json` is there twice"),
        (zip_with(|file| file.mode = 0o120_777, "notes"), "a symbolic link"),
        (zip_with(|file| file.mode = 0o060_644, "notes"), "a special file"),
        (zip_with(|file| file.flags = 1, "notes"), "encrypted"),
        (zip_with(|file| file.method = 93, part), "compressed with method 93"),
        (zip_with(|file| file.crc ^= 1, part), "another checksum"),
        (zip_with(|file| file.local_size += 1, part), "does not agree"),
        (zip_with(|file| (file.size, file.local_size) = (14, 14), part), "more bytes than the 14"),
        (zip_with(|file| (file.size, file.local_size) = (16, 16), part), "fewer bytes than the 16"),
        (zip_with(|file| file.size = u32::MAX, part), "zip64"),
        (zip_with(|file| (file.method, file.data) = (8, vec![0xff; 9]), part), "`artefacts/a"),
    ] {
        fixture.refuses(&archive, reason);
    }
}

#[test]
fn zips_are_bounded_and_read_in_one_way_only() {
    let mut fixture = Fixture::new();
    let whole = zip_of(&module(), true);
    let many: Vec<Zipped> = (0..65_534).map(|n| Zipped::new(&n.to_string(), b"", false)).collect();
    fixture.refuses(&zip(&many), "entries of the archive: more than 4096");
    let bomb = and(module(), "artefacts/a.safetensors", &vec![0; 64 << 20]);
    fixture.refuses(&zip_of(&bomb, true), "which `max_ratio` allows");
    // Sizes that say less do not help: no more is unpacked than they say.
    let small = |file: &mut Zipped| {
        *file = Zipped::new(&file.name, &vec![0; 64 << 20], true);
        (file.size, file.local_size) = (1 << 19, 1 << 19);
    };
    let lying = zip_with(small, "artefacts/a.safetensors");
    fixture.refuses(&lying, "more bytes than the 524288");
    let end = whole.len() - 22;
    let change = |at: usize, bytes: &[u8]| {
        let mut changed = whole.clone();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        changed
    };
    fixture.refuses(&whole[..end], "no end record");
    fixture.refuses(&[b"PK\x03\x04 before", whole.as_slice()].concat(), "right before its end");
    fixture.refuses(&change(end + 4, &[1, 0]), "several disks");
    fixture.refuses(&change(end + 8, &[2, 0]), "several disks");
    fixture.refuses(&change(end + 8, &[255; 4]), "zip64");
    fixture.refuses(&change(end + 8, &[2, 0, 2, 0]), "longer than its entries");
    fixture.refuses(&change(end + 8, &[4, 0, 4, 0]), "not readable");
    let second = whole.windows(4).rposition(|bytes| bytes == b"PK\x01\x02").unwrap();
    fixture.refuses(&change(second, b"PK\x01\x03"), "an entry that is none");
    let mut two_ends = [&whole, &whole[end..]].concat();
    two_ends[end + 20] = 22;
    fixture.refuses(&two_ends, "no end record of its own");
    // Two entries that are the same bytes.
    let files = [Zipped::new("README.md", b"", false), Zipped::new("module.sig", b"", false)];
    let mut shared = zip(&files);
    let second = shared.windows(4).rposition(|bytes| bytes == b"PK\x01\x02").unwrap();
    shared[second + 42..second + 46].fill(0);
    fixture.refuses(&shared, "shares bytes");
    fixture.limits.max_file_bytes = 10;
    fixture.refuses(&whole, "max_file_bytes");
}

#[derive(Clone, Debug)]
enum Mutation {
    Set(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Insert(prop::sample::Index, Vec<u8>),
    Repeat(prop::sample::Index, prop::sample::Index),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        6 => (index(), any::<u8>()).prop_map(|(at, byte)| Mutation::Set(at, byte)),
        1 => index().prop_map(Mutation::Cut),
        1 => (index(), prop::collection::vec(any::<u8>(), 1..600))
            .prop_map(|(at, bytes)| Mutation::Insert(at, bytes)),
        1 => (index(), index()).prop_map(|(from, to)| Mutation::Repeat(from, to)),
    ]
}

fn mutate(mut bytes: Vec<u8>, mutations: &[Mutation]) -> Vec<u8> {
    for mutation in mutations {
        if bytes.is_empty() {
            break;
        }
        let length = bytes.len();
        match mutation {
            Mutation::Set(at, byte) => bytes[at.index(length)] = *byte,
            Mutation::Cut(at) => bytes.truncate(at.index(length)),
            Mutation::Insert(at, more) => {
                let at = at.index(length);
                bytes.splice(at..at, more.iter().copied());
            }
            Mutation::Repeat(from, to) => {
                let (from, to) = (from.index(length), to.index(length));
                let part = bytes[from.min(to)..from.max(to)].to_vec();
                bytes.extend(part);
            }
        }
    }
    bytes
}

/// A tar whose header sums fit again, so that mutations reach what comes after them.
fn with_sums(mut tar: Vec<u8>) -> Vec<u8> {
    for block in tar.chunks_exact_mut(512).filter(|block| block[257..262] == *b"ustar") {
        let mut header = Header::new_old();
        header.as_mut_bytes().copy_from_slice(block);
        header.set_cksum();
        block.copy_from_slice(header.as_bytes());
    }
    tar
}

proptest! {
    /// No panic, nothing outside the staging directory, and no more bytes than are allowed.
    #[test]
    fn mutated_archives_are_unpacked_or_refused(
        kind in 0..4_u8,
        mutations in prop::collection::vec(mutation(), 1..5),
    ) {
        let mut fixture = Fixture::new();
        fixture.limits.max_total_bytes = 1 << 14;
        let files = and(module_files("top/"), "top/artefacts/a.safetensors", &[7; 700]);
        let archive = match kind {
            0 => with_sums(mutate(tar(&files), &mutations)),
            1 => gzip(&with_sums(mutate(tar(&files), &mutations))),
            2 => mutate(tar_gz(&files), &mutations),
            _ => mutate(zip_of(&files, kind == 3), &mutations),
        };
        let unpacked = fixture.unpack("archive", &archive);
        if let Ok(fetched) = &unpacked {
            prop_assert!(fetched.directory.starts_with(fixture.staging()));
            let names = fixture.names(&fetched.directory);
            prop_assert_eq!(names.len(), fetched.files);
            let sizes = names.iter().map(|name| fetched.directory.join(name).metadata().unwrap().len());
            prop_assert_eq!(sizes.sum::<u64>(), fetched.bytes);
            prop_assert!(fetched.bytes <= 1 << 14);
        }
        drop(unpacked);
        // What is too large as it is gets no staging directory.
        let mut left = fixture.names(fixture.directory.path());
        left.retain(|name| name != "staging/.lock");
        prop_assert_eq!(left, ["archive"]);
    }
}
