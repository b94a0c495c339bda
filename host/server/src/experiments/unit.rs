//! Units of assignment: the one of a request's names that an experiment goes by.

use polyskill_experiment::declaration::Unit;
use serde_json::Value as Json;
use sha2::{Digest, Sha256};

/// Header with the conversation's id, for clients that cannot send `unit`.
pub const CONVERSATION_HEADER: &str = "x-conversation-id";
/// Header with the tenant's id, set by the gateway before this server.
pub const TENANT_HEADER: &str = "x-tenant-id";

/// The names that a request gives of its sender. None is kept as it is: units are hashes.
#[derive(Clone, Debug, Default)]
pub struct UnitIds {
    /// The field `unit`.
    pub unit: Option<String>,
    /// The field `user`.
    pub user: Option<String>,
    /// [`CONVERSATION_HEADER`].
    pub conversation: Option<String>,
    /// [`TENANT_HEADER`]. The server trusts it, so a gateway must set it over the client's own.
    pub tenant: Option<String>,
    /// The beginning of a conversation, all up to the first user's message, which its later
    /// requests repeat; `None` for completions.
    pub beginning: Option<String>,
}

impl UnitIds {
    /// The unit of a request, hashed: units may be names of people, and are kept for long. `None`
    /// where the request has no name of the kind, so that it takes no part.
    ///
    /// A conversation goes by `unit`, its header or its beginning; a user by `unit` or `user`; a
    /// tenant by its header or `unit`.
    pub fn unit(&self, unit: Unit) -> Option<String> {
        let (kind, name) = match unit {
            Unit::Conversation => {
                let named = self.unit.as_ref().or(self.conversation.as_ref());
                ("conversation", named.or(self.beginning.as_ref())?)
            }
            Unit::User => ("user", self.unit.as_ref().or(self.user.as_ref())?),
            Unit::Tenant => ("tenant", self.tenant.as_ref().or(self.unit.as_ref())?),
        };
        Some(hashed(&format!("{kind}\0{name}")))
    }
}

/// The first 128 bits of a SHA-256, hexadecimal.
fn hashed(text: &str) -> String {
    Sha256::digest(text).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// The beginning of a conversation, up to its first user's message, as JSON. `None` without such a
/// message.
pub fn beginning(messages: &[Json]) -> Option<String> {
    let first = messages.iter().position(|message| message["role"] == "user")?;
    Some(Json::from(messages[..=first].to_vec()).to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn later_requests_of_a_conversation_are_the_same_unit() {
        let first = json!([{"role": "system", "content": "s"}, {"role": "user", "content": "a"}]);
        let mut later = first.clone();
        let more =
            [json!({"role": "assistant", "content": "b"}), json!({"role": "user", "content": "c"})];
        later.as_array_mut().unwrap().extend(more);
        let names = |messages: &Json| UnitIds {
            beginning: beginning(messages.as_array().unwrap()),
            ..UnitIds::default()
        };
        let unit = names(&first).unit(Unit::Conversation);
        assert!(unit.is_some() && unit == names(&later).unit(Unit::Conversation));
        let other = json!([{"role": "user", "content": "a"}]);
        assert_ne!(unit, names(&other).unit(Unit::Conversation));
        assert_eq!(beginning(&[json!({"role": "system", "content": "s"})]), None);
    }

    #[test]
    fn explicit_names_come_first_and_kinds_are_apart() {
        let text = |text: &str| Some(text.to_owned());
        let names = UnitIds { user: text("ann"), tenant: text("ann"), ..UnitIds::default() };
        assert_eq!(names.unit(Unit::Conversation), None);
        assert_ne!(names.unit(Unit::User), names.unit(Unit::Tenant));
        let named = UnitIds { unit: text("c1"), beginning: text("x"), ..names.clone() };
        let by_header = UnitIds { conversation: text("c1"), beginning: text("y"), ..names };
        assert_eq!(named.unit(Unit::Conversation), by_header.unit(Unit::Conversation));
        assert!(!named.unit(Unit::User).unwrap().contains("ann"));
    }
}
