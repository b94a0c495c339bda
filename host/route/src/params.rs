//! Router parameters as configurations, requests and command lines write them; for serde's `with`.
//!
//! Written as a map; read from a map or a list of pairs. Whole numbers become doubles.

use std::fmt;

use polyskill_sdk::{Parameters, Value};
use serde::de::{Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Parameters from a command line, `name=value` each. A value is a number where it parses as one,
/// else a flag where it is `true` or `false`, else text.
///
/// # Errors
/// The first that has no `=`.
pub fn of_flags(texts: &[String]) -> Result<Parameters, String> {
    let parse = |text: &String| {
        let (name, value) =
            text.split_once('=').ok_or_else(|| format!("--param `{text}`, expected name=value"))?;
        let value = match (value.parse::<f64>(), value.parse::<bool>()) {
            (Ok(number), _) => Value::Number(number),
            (_, Ok(flag)) => Value::Flag(flag),
            _ => Value::Text(value.to_owned()),
        };
        Ok((name.to_owned(), value))
    };
    texts.iter().map(parse).collect::<Result<_, _>>().map(Parameters)
}

/// `upper` over `lower`: each of `lower` stays whose name `upper` lacks.
pub fn over(lower: &Parameters, upper: &Parameters) -> Parameters {
    let stays = lower.0.iter().filter(|(name, _)| upper.get(name).is_none());
    Parameters(stays.chain(&upper.0).cloned().collect())
}

/// Reads parameters.
///
/// # Errors
/// If the value is neither a map nor a list of pairs, or holds a value that is no scalar.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Parameters, D::Error> {
    Ok(Read::deserialize(deserializer)?.0)
}

/// Writes parameters as a map.
///
/// # Errors
/// Those of the format.
pub fn serialize<S: Serializer>(parameters: &Parameters, serializer: S) -> Result<S::Ok, S::Error> {
    Written(parameters).serialize(serializer)
}

/// Parameters that may be missing.
pub(crate) mod optional {
    use super::{Deserialize, Deserializer, Parameters, Read};

    /// Reads parameters, where there are any.
    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Parameters>, D::Error> {
        Ok(Option::<Read>::deserialize(deserializer)?.map(|Read(parameters)| parameters))
    }
}

/// Parameters as they are written.
pub(crate) struct Written<'a>(pub(crate) &'a Parameters);

impl Serialize for Written<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.0.iter().map(|(name, value)| (name, WrittenScalar(value))))
    }
}

/// A value as it is written.
struct WrittenScalar<'a>(&'a Value);

impl Serialize for WrittenScalar<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::Flag(flag) => serializer.serialize_bool(*flag),
            Value::Number(number) => serializer.serialize_f64(*number),
            Value::Text(text) => serializer.serialize_str(text),
        }
    }
}

/// Parameters as they are read.
struct Read(Parameters);

impl<'de> Deserialize<'de> for Read {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ByName;

        impl<'de> Visitor<'de> for ByName {
            type Value = Read;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("parameters by name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Read, A::Error> {
                let mut read = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    let ReadScalar(value) = map
                        .next_value()
                        .map_err(|error| Error::custom(format!("parameter `{name}`: {error}")))?;
                    read.push((name, value));
                }
                Ok(Read(Parameters(read)))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut pairs: A) -> Result<Read, A::Error> {
                let mut read: Vec<(String, Value)> = Vec::new();
                while let Some((name, ReadScalar(value))) = pairs.next_element()? {
                    // Of one name the last counts, as in a map.
                    read.retain(|(known, _)| *known != name);
                    read.push((name, value));
                }
                Ok(Read(Parameters(read)))
            }
        }

        deserializer.deserialize_any(ByName)
    }
}

/// A value as it is read.
struct ReadScalar(Value);

impl<'de> Deserialize<'de> for ReadScalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Scalar;

        impl Visitor<'_> for Scalar {
            type Value = ReadScalar;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a flag, a number or a text")
            }

            fn visit_bool<E: Error>(self, flag: bool) -> Result<ReadScalar, E> {
                Ok(ReadScalar(Value::Flag(flag)))
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<ReadScalar, E> {
                Ok(ReadScalar(Value::Number(number as f64)))
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<ReadScalar, E> {
                Ok(ReadScalar(Value::Number(number as f64)))
            }

            fn visit_f64<E: Error>(self, number: f64) -> Result<ReadScalar, E> {
                Ok(ReadScalar(Value::Number(number)))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<ReadScalar, E> {
                Ok(ReadScalar(Value::Text(text.to_owned())))
            }
        }

        deserializer.deserialize_any(Scalar)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_numbers_flags_or_texts() {
        let texts = ["top_k=2", "soft=true", "share=layer", "empty="].map(str::to_owned);
        let text = |text: &str| Value::Text(text.to_owned());
        let values = [Value::Number(2.0), Value::Flag(true), text("layer"), text("")];
        let parameters = of_flags(&texts).unwrap();
        assert_eq!(parameters.0.iter().map(|(_, value)| value.clone()).collect::<Vec<_>>(), values);
        assert!(of_flags(&["top_k".to_owned()]).unwrap_err().contains("`top_k`"));
    }

    #[test]
    fn upper_parameters_hold() {
        let of = |texts: &[&str]| {
            of_flags(&texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>()).unwrap()
        };
        assert_eq!(over(&of(&["a=1", "b=2"]), &of(&["a=3"])), of(&["b=2", "a=3"]));
    }
}
