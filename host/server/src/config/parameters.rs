//! Router parameters as configurations and command lines write them.

use polyskill_sdk::{Parameters, Value};

/// Scalars of a TOML table as router parameters. Integers become doubles.
///
/// # Errors
/// The name of a value that is no scalar.
pub fn parameters(table: &toml::Table) -> Result<Parameters, String> {
    let scalar = |(name, value): (&String, &toml::Value)| {
        let value = match value {
            toml::Value::Boolean(value) => Value::Flag(*value),
            toml::Value::Integer(value) => Value::Number(*value as f64),
            toml::Value::Float(value) => Value::Number(*value),
            toml::Value::String(value) => Value::Text(value.clone()),
            other => {
                return Err(format!(
                    "parameter `{name}` has the type {}, expected a scalar",
                    other.type_str()
                ));
            }
        };
        Ok((name.clone(), value))
    };
    table.iter().map(scalar).collect::<Result<_, _>>().map(Parameters)
}

/// Parameters from the command line, `name=value` each. A value is a number where it parses as one,
/// else a flag where it is `true` or `false`, else text.
///
/// # Errors
/// The first that has no `=`.
pub fn parse_parameters(texts: &[String]) -> Result<Parameters, String> {
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
