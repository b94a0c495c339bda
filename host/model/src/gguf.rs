//! The GGUF container: metadata and tensor directory, read from untrusted bytes.
//!
//! Versions 2 and 3, little-endian, per ggml's `docs/gguf.md`. Every length is checked against the
//! bytes that are left before anything is allocated, so a lying header costs nothing.

use std::collections::BTreeMap;

/// Longest key or tensor name that the format allows.
const MAX_NAME_BYTES: usize = 65_535;
/// Most dimensions of a tensor, as ggml has them.
const MAX_DIMENSIONS: usize = 4;

/// A parsed header. Tensor data stays in the file.
#[derive(Debug)]
pub struct Header {
    /// Key-value pairs, by key. No key appears twice.
    pub metadata: BTreeMap<String, Value>,
    /// Tensors by name.
    pub tensors: BTreeMap<String, TensorInfo>,
}

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Any unsigned integer.
    Unsigned(u64),
    /// Any signed integer.
    Signed(i64),
    /// A 32- or 64-bit float.
    Float(f64),
    /// A flag.
    Bool(bool),
    /// UTF-8 text.
    Text(String),
    /// A list of scalars or texts. Lists of lists are refused.
    List(Vec<Self>),
}

impl Value {
    /// The value as an unsigned integer; `None` for negative numbers, floats and all else.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Unsigned(value) => Some(*value),
            Self::Signed(value) => u64::try_from(*value).ok(),
            _ => None,
        }
    }

    /// The value as a float; `None` unless it is a number. Integers above 2⁵³ are rounded.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Float(value) => Some(*value),
            Self::Unsigned(value) => Some(*value as f64),
            Self::Signed(value) => Some(*value as f64),
            _ => None,
        }
    }

    /// The value as a flag; `None` unless it is one. Numbers are no flags.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// The value as text; `None` unless it is one.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Text(value) => Some(value),
            _ => None,
        }
    }

    /// The value as a list; `None` unless it is one.
    pub fn as_list(&self) -> Option<&[Self]> {
        match self {
            Self::List(values) => Some(values),
            _ => None,
        }
    }
}

/// Storage type of a tensor's elements.
///
/// K-quants are blocks of 256 elements with scales inside, the others blocks of 32; IQ and ternary
/// types are not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "ggml's own names")]
pub enum TensorType {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
}

impl TensorType {
    /// The type of a number in ggml's `enum ggml_type`; `None` for those that are not read.
    fn from_id(id: u32) -> Option<Self> {
        Some(match id {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            10 => Self::Q2K,
            11 => Self::Q3K,
            12 => Self::Q4K,
            13 => Self::Q5K,
            14 => Self::Q6K,
            30 => Self::Bf16,
            _ => return None,
        })
    }

    /// `(elements, bytes)` of one block.
    ///
    /// Rows consist of whole blocks.
    pub fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q2K => (256, 84),
            Self::Q3K => (256, 110),
            Self::Q4K => (256, 144),
            Self::Q5K => (256, 176),
            Self::Q6K => (256, 210),
        }
    }
}

/// Place and layout of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Outermost dimension first, as everywhere else in this crate; the file has the innermost
    /// first.
    pub shape: Vec<usize>,
    /// Storage type.
    pub dtype: TensorType,
    /// First byte in the file, checked to leave room for the tensor.
    pub start: usize,
    /// Bytes in the file.
    pub num_bytes: usize,
}

/// Parses the header of a whole file's bytes.
///
/// Tensors are placed but not read: their bytes are checked to lie inside of the file. They may
/// overlap.
///
/// # Errors
/// If the bytes are no GGUF file of version 2 or 3: the value that was found and the one that was
/// expected, as text; the caller adds the path.
pub fn parse(bytes: &[u8]) -> Result<Header, String> {
    let mut reader = Reader { bytes, at: 0 };
    if reader.take(4)? != b"GGUF" {
        return Err("does not begin with the magic `GGUF`".to_owned());
    }
    let version = reader.u32()?;
    if !(2..=3).contains(&version) {
        return Err(format!("GGUF version {version}, expected 2 or 3"));
    }
    let num_tensors = reader.count("tensor", 24)?;
    let num_pairs = reader.count("metadata pair", 13)?;
    let mut metadata = BTreeMap::new();
    for _ in 0..num_pairs {
        let key = reader.name("metadata key")?;
        let type_id = reader.u32()?;
        let value =
            reader.value(type_id, true).map_err(|reason| format!("key `{key}`: {reason}"))?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(format!("key `{key}` appears twice"));
        }
    }
    let mut directory = Vec::new();
    for _ in 0..num_tensors {
        directory.push(reader.tensor()?);
    }
    let alignment = match metadata.get("general.alignment") {
        None => 32,
        Some(value) => match value.as_u64() {
            Some(alignment) if alignment.is_power_of_two() && alignment <= 1 << 20 => {
                alignment as usize
            }
            _ => return Err("`general.alignment` is not a power of two up to 2²⁰".to_owned()),
        },
    };
    let data_start = reader.at.next_multiple_of(alignment);
    let mut tensors = BTreeMap::new();
    for (name, mut info) in directory {
        info.start = place(&name, &info, data_start, alignment, bytes.len())?;
        if tensors.insert(name.clone(), info).is_some() {
            return Err(format!("tensor `{name}` appears twice"));
        }
    }
    Ok(Header { metadata, tensors })
}

/// Turns a tensor's relative offset into a checked position in the file.
///
/// `data_start` is the end of the header, rounded up to the alignment.
fn place(
    name: &str,
    info: &TensorInfo,
    data_start: usize,
    alignment: usize,
    file_len: usize,
) -> Result<usize, String> {
    if !info.start.is_multiple_of(alignment) {
        return Err(format!(
            "tensor `{name}`: offset {} is not aligned to {alignment}",
            info.start
        ));
    }
    let start = data_start.checked_add(info.start);
    let end = start.and_then(|start| start.checked_add(info.num_bytes));
    match (start, end) {
        (Some(start), Some(end)) if end <= file_len => Ok(start),
        _ => Err(format!(
            "tensor `{name}`: {} bytes at offset {} lie beyond the file's {file_len} bytes",
            info.num_bytes, info.start
        )),
    }
}

/// A cursor over the header's bytes. All reads are checked against the end.
struct Reader<'a> {
    /// The whole file.
    bytes: &'a [u8],
    /// The next byte, never behind the end.
    at: usize,
}

impl<'a> Reader<'a> {
    /// The next `len` bytes.
    fn take(&mut self, len: usize) -> Result<&'a [u8], String> {
        let left = self.bytes.len() - self.at;
        if len > left {
            return Err(format!("ends at byte {}, {len} more bytes expected", self.bytes.len()));
        }
        let taken = &self.bytes[self.at..self.at + len];
        self.at += len;
        Ok(taken)
    }

    /// The next `N` bytes.
    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    /// A little-endian 32-bit number.
    fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// A little-endian 64-bit number.
    fn u64(&mut self) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A count of things that take at least `min_bytes` each: never more than the file can hold.
    fn count(&mut self, what: &str, min_bytes: usize) -> Result<usize, String> {
        let count = self.u64()?;
        let most = (self.bytes.len() - self.at) / min_bytes;
        usize::try_from(count)
            .ok()
            .filter(|&count| count <= most)
            .ok_or_else(|| format!("{what} count {count}, the file can hold at most {most}"))
    }

    /// Text with its length before it, which must be UTF-8.
    fn text(&mut self, max_bytes: usize) -> Result<String, String> {
        let len = self.count("text byte", 1)?;
        if len > max_bytes {
            return Err(format!("text of {len} bytes, at most {max_bytes} allowed"));
        }
        String::from_utf8(self.take(len)?.to_vec()).map_err(|_| "text is not UTF-8".to_owned())
    }

    /// Text of at most [`MAX_NAME_BYTES`]; `what` says in a refusal what it names.
    fn name(&mut self, what: &str) -> Result<String, String> {
        self.text(MAX_NAME_BYTES).map_err(|reason| format!("{what}: {reason}"))
    }

    /// A metadata value of a type by its number in the format.
    fn value(&mut self, type_id: u32, lists_allowed: bool) -> Result<Value, String> {
        Ok(match type_id {
            0 => Value::Unsigned(self.array::<1>()?[0].into()),
            1 => Value::Signed(i8::from_le_bytes(self.array()?).into()),
            2 => Value::Unsigned(u16::from_le_bytes(self.array()?).into()),
            3 => Value::Signed(i16::from_le_bytes(self.array()?).into()),
            4 => Value::Unsigned(self.u32()?.into()),
            5 => Value::Signed(i32::from_le_bytes(self.array()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array()?).into()),
            7 => Value::Bool(self.array::<1>()?[0] != 0),
            8 => Value::Text(self.text(usize::MAX)?),
            9 if lists_allowed => self.list()?,
            9 => return Err("a list inside a list".to_owned()),
            10 => Value::Unsigned(self.u64()?),
            11 => Value::Signed(i64::from_le_bytes(self.array()?)),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            other => return Err(format!("value type {other}, expected 0 to 12")),
        })
    }

    /// A list: the elements' type, their count, and the elements. The count is bounded by the least
    /// size of an element before anything is allocated.
    fn list(&mut self) -> Result<Value, String> {
        let type_id = self.u32()?;
        let min_bytes = match type_id {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            _ => 8,
        };
        let count = self.count("list element", min_bytes)?;
        (0..count).map(|_| self.value(type_id, false)).collect::<Result<_, _>>().map(Value::List)
    }

    /// An entry of the directory: name, shape, type and offset. The offset in `start` counts from
    /// the data's beginning until [`place`] has checked it.
    fn tensor(&mut self) -> Result<(String, TensorInfo), String> {
        let name = self.name("tensor name")?;
        let fail = |reason: String| format!("tensor `{name}`: {reason}");
        let num_dimensions = self.u32()? as usize;
        if !(1..=MAX_DIMENSIONS).contains(&num_dimensions) {
            return Err(fail(format!(
                "{num_dimensions} dimensions, expected 1 to {MAX_DIMENSIONS}"
            )));
        }
        let mut shape = Vec::with_capacity(num_dimensions);
        for _ in 0..num_dimensions {
            let dimension = self.u64()?;
            shape.push(
                usize::try_from(dimension).map_err(|_| fail(format!("dimension {dimension}")))?,
            );
        }
        shape.reverse();
        let type_id = self.u32()?;
        let dtype = TensorType::from_id(type_id)
            .ok_or_else(|| fail(format!("ggml type {type_id} is not supported")))?;
        let offset = self.u64()?;
        let start = usize::try_from(offset).map_err(|_| fail(format!("offset {offset}")))?;
        let elements = shape.iter().try_fold(1_usize, |product, &size| product.checked_mul(size));
        let (block_elements, block_bytes) = dtype.block();
        let inner = shape.last().copied().unwrap_or(0);
        if inner == 0 || !inner.is_multiple_of(block_elements) {
            return Err(fail(format!(
                "rows of {inner} elements, {dtype:?} needs multiples of {block_elements}"
            )));
        }
        let num_bytes = elements
            .and_then(|elements| (elements / block_elements).checked_mul(block_bytes))
            .ok_or_else(|| fail(format!("shape {shape:?} overflows")))?;
        Ok((name, TensorInfo { shape, dtype, start, num_bytes }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(value: &str) -> Vec<u8> {
        let mut bytes = (value.len() as u64).to_le_bytes().to_vec();
        bytes.extend(value.as_bytes());
        bytes
    }

    /// A file with one pair and one f32 tensor `t` of shape [2, 3].
    fn file() -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3_u32.to_le_bytes());
        bytes.extend(1_u64.to_le_bytes());
        bytes.extend(1_u64.to_le_bytes());
        bytes.extend(text("general.name"));
        bytes.extend(8_u32.to_le_bytes());
        bytes.extend(text("tiny"));
        bytes.extend(text("t"));
        bytes.extend(2_u32.to_le_bytes());
        bytes.extend(3_u64.to_le_bytes());
        bytes.extend(2_u64.to_le_bytes());
        bytes.extend(0_u32.to_le_bytes());
        bytes.extend(0_u64.to_le_bytes());
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend([0; 24]);
        bytes
    }

    #[test]
    fn reads_metadata_and_tensor_directory() {
        let header = parse(&file()).unwrap();
        assert_eq!(header.metadata["general.name"], Value::Text("tiny".to_owned()));
        let tensor = &header.tensors["t"];
        assert_eq!((tensor.shape.as_slice(), tensor.num_bytes), ([2, 3].as_slice(), 24));
        assert_eq!(tensor.start % 32, 0);
    }

    #[test]
    fn every_truncation_is_an_error() {
        let file = file();
        for len in 0..file.len() {
            assert!(parse(&file[..len]).is_err(), "{len} bytes");
        }
    }

    proptest::proptest! {
        #[test]
        fn mutated_headers_never_panic(edits in proptest::collection::vec((0..120_usize, 0..=255_u8), 1..6)) {
            let mut file = file();
            for (at, byte) in edits {
                let at = at % file.len();
                file[at] = byte;
            }
            let _ = parse(&file);
        }

        #[test]
        fn arbitrary_bytes_never_panic(mut bytes in proptest::collection::vec(0..=255_u8, 0..256)) {
            bytes.splice(0..0, *b"GGUF\x03\0\0\0");
            let _ = parse(&bytes);
        }
    }
}
