//! Request bodies: read, parsed, and refused with the field's name and what it should have been.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use serde_json::Value as Json;
use tokio::sync::OwnedSemaphorePermit;

use super::error::ApiError;
use crate::service::Service;

/// Bytes of a body that is parsed where it is read; a larger one is parsed on a thread that may take
/// its time.
const PARSED_AT_ONCE: usize = 64 << 10;

/// A body that is a JSON object. The content type is not looked at.
#[derive(Debug)]
pub(super) struct Body {
    json: Json,
    /// Its bytes, as sent.
    len: usize,
    /// Its room, until it has been worked on.
    _room: Option<OwnedSemaphorePermit>,
}

impl FromRequest<Arc<Service>> for Body {
    type Rejection = ApiError;

    /// Reads the whole body, up to the configured size and time, where there is room for it.
    async fn from_request(request: Request, service: &Arc<Service>) -> Result<Self, ApiError> {
        let room = service.front.body_room.enter(request.headers()).ok_or_else(|| {
            ApiError::overloaded("the server reads as many request bodies as it has room for")
        })?;
        let time = service.front.body_room.time();
        let reading = tokio::time::timeout(time, Bytes::from_request(request, service));
        let late = |_| {
            let message = format!("the body took longer than {} seconds", time.as_secs());
            ApiError::body_not_read(StatusCode::REQUEST_TIMEOUT, message)
        };
        let bytes = reading.await.map_err(late)?;
        let bytes =
            bytes.map_err(|error| ApiError::body_not_read(error.status(), error.body_text()))?;
        let parsed = match bytes.len() {
            ..=PARSED_AT_ONCE => Self::parse(&bytes),
            _ => tokio::task::spawn_blocking(move || Self::parse(&bytes))
                .await
                .map_err(|error| ApiError::internal(error.to_string()))?,
        };
        Ok(Self { _room: Some(room), ..parsed? })
    }
}

impl Body {
    /// Reads it from bytes. An integer of more than 64 bits is refused, as the parser would round
    /// it.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, ApiError> {
        let refused =
            |reason: String| ApiError::bad_request(format!("the request body {reason}"), None);
        if let Some(number) = oversized_integer(bytes) {
            return Err(refused(format!("holds {number}, an integer of more than 64 bits")));
        }
        match serde_json::from_slice(bytes) {
            Ok(json @ Json::Object(_)) => Ok(Self { json, len: bytes.len(), _room: None }),
            Ok(other) => Err(refused(format!("is {}, expected an object", kind(&other)))),
            Err(error) => Err(refused(format!("is not valid JSON: {error}"))),
        }
    }

    /// Its bytes, as sent.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Fields with their values, in the order in which they were sent.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&str, &Json)> {
        let fields = self.json.as_object().into_iter().flatten();
        fields.map(|(name, value)| (name.as_str(), value))
    }

    /// Reads a group of fields; those that it does not know belong to others. An error is 400 with
    /// the path of the value that does not fit, and its field in `param`.
    pub(super) fn fields<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        serde_path_to_error::deserialize(&self.json).map_err(|error| {
            let (path, reason) = (error.path().to_string(), error.inner().to_string());
            if let Some(field) = missing_field(&reason).filter(|_| path == ".") {
                return ApiError::bad_request(format!("`{field}` is required"), Some(field));
            }
            let field = path.split(['.', '[']).next();
            ApiError::bad_request(format!("`{path}`: {}", plain(&reason)), field)
        })
    }
}

/// The first integer of a JSON text that needs more than 64 bits: it would become a float in
/// silence. Numbers in strings do not count; a text that is not JSON gives no meaning.
pub(super) fn oversized_integer(json: &[u8]) -> Option<&str> {
    let (mut at, mut in_string) = (0, false);
    while at < json.len() {
        match json[at] {
            b'\\' if in_string => at += 1,
            b'"' => in_string = !in_string,
            b'-' | b'0'..=b'9' if !in_string => {
                let is_part =
                    |byte: &u8| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E');
                let end = json[at..].iter().position(|byte| !is_part(byte));
                let end = end.map_or(json.len(), |length| at + length);
                let number = std::str::from_utf8(&json[at..end]).ok()?;
                let is_integer = !number.contains(['.', 'e', 'E']);
                if is_integer && number.parse::<i64>().is_err() && number.parse::<u64>().is_err() {
                    return Some(number);
                }
                at = end - 1;
            }
            _ => {}
        }
        at += 1;
    }
    None
}

/// The field's name, of serde's message for a missing field.
fn missing_field(reason: &str) -> Option<&str> {
    reason.strip_prefix("missing field `")?.strip_suffix('`')
}

/// A value in the words of an error: scalars by their value, the others by their JSON type. A
/// string is not repeated, as it may be long or private.
fn kind(value: &Json) -> String {
    match value {
        Json::Null => "null".to_owned(),
        Json::Bool(value) => value.to_string(),
        Json::Number(value) => value.to_string(),
        Json::String(_) => "a string".to_owned(),
        Json::Array(_) => "a list".to_owned(),
        Json::Object(_) => "an object".to_owned(),
    }
}

/// A reason with JSON's names instead of Rust's types. It works on serde's messages, and leaves
/// others as they are.
fn plain(reason: &str) -> String {
    let Some((found, expected)) = reason.rsplit_once(", expected ") else {
        return reason.to_owned();
    };
    let expected = match expected {
        "f32" | "f64" => "a number",
        "i64" => "a whole number",
        "u32" | "u64" | "usize" => "a whole number from 0 on",
        "a sequence" => "a list",
        "a map" => "an object",
        other if other.starts_with("struct ") => "an object",
        other => other,
    };
    format!("{found}, expected {expected}")
        .replace(": sequence,", ": list,")
        .replace(": map,", ": object,")
}

/// Reads a value that has one of several forms; `read` gives `None` where none fits.
///
/// serde's untagged enums say only that no variant matched; this says what was found and expected.
pub(super) fn one_of<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    expected: &str,
    read: impl FnOnce(&Json) -> Option<T>,
) -> Result<T, D::Error> {
    let value = Json::deserialize(deserializer)?;
    read(&value)
        .ok_or_else(|| D::Error::custom(format!("found {}, expected {expected}", kind(&value))))
}

/// The texts of a list that holds nothing else; `None` for other values.
pub(super) fn texts(value: &Json) -> Option<Vec<String>> {
    value.as_array()?.iter().map(|item| item.as_str().map(str::to_owned)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only whether they can be read is of interest")]
    struct Fields {
        needed: Vec<Inner>,
        number: Option<f32>,
        count: Option<usize>,
    }

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only whether they can be read is of interest")]
    struct Inner {
        name: String,
    }

    #[test]
    fn integers_beyond_64_bits_are_found_and_nothing_else() {
        for (json, found) in [
            (r#"{"a": 18446744073709551616}"#, Some("18446744073709551616")),
            (r#"[-9223372036854775809]"#, Some("-9223372036854775809")),
            (r#"[18446744073709551615, -9223372036854775808]"#, None),
            (r#"{"18446744073709551616": "\"18446744073709551616"}"#, None),
            (r#"[184467440737095516160.0, 1e400]"#, None),
            ("12345678901234567890123", Some("12345678901234567890123")),
        ] {
            assert_eq!(oversized_integer(json.as_bytes()), found, "{json}");
        }
    }

    #[test]
    fn refusals_name_the_field_and_what_was_expected() {
        for (body, param, message) in [
            ("[1]", None, "the request body is a list, expected an object"),
            ("{}", Some("needed"), "`needed` is required"),
            (
                r#"{"needed": "x"}"#,
                Some("needed"),
                r#"`needed`: invalid type: string "x", expected a list"#,
            ),
            (
                r#"{"needed": [{"name": "a"}, {"name": [2]}]}"#,
                Some("needed"),
                "`needed[1].name`: invalid type: list, expected a string",
            ),
            (r#"{"needed": [{}]}"#, Some("needed"), "`needed[0]`: missing field `name`"),
            (
                r#"{"needed": [], "number": "hot"}"#,
                Some("number"),
                r#"`number`: invalid type: string "hot", expected a number"#,
            ),
            (
                r#"{"needed": [], "count": -1}"#,
                Some("count"),
                "`count`: invalid value: integer `-1`, expected a whole number from 0 on",
            ),
        ] {
            let fields = Body::parse(body.as_bytes()).and_then(|body| body.fields::<Fields>());
            assert_eq!(fields.unwrap_err(), ApiError::bad_request(message, param), "{body}");
        }
        let truncated = Body::parse(b"{\"needed\":").unwrap_err().body().to_string();
        assert!(truncated.contains("is not valid JSON: EOF"), "{truncated}");
    }
}
