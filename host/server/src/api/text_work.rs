//! Work on texts, off the event loop: templates, tokenizing, and large parts of replies.
//!
//! Short texts share a few threads, and long ones wait for a single one, so that whoever sends long
//! texts is in nobody's way but that of others like it.

use std::sync::Arc;

use super::error::ApiError;
use super::modules::blocking;
use crate::service::Service;

/// Bytes of a text that is tokenized where it is read: it takes less than to hand it over.
const AT_ONCE: usize = 1 << 10;
/// Runs work on texts of so many bytes, in its lane. `may_take_long` sends short texts there too,
/// as templates may do more with them than tokenizers.
pub(super) async fn text_work<T: Send + 'static>(
    service: &Arc<Service>,
    bytes: usize,
    may_take_long: bool,
    work: impl FnOnce(&Service) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    if bytes <= AT_ONCE && !may_take_long {
        return work(service);
    }
    let _turn = service.front.text_lanes.enter(bytes).await;
    blocking(Arc::clone(service), work).await
}

/// Refuses a text that is certainly longer than any prompt, before it is tokenized: no token stands
/// for more bytes than the longest does.
pub(super) fn check_length(service: &Service, text: &str, param: &str) -> Result<(), ApiError> {
    let limit = service.engine.handle().max_tokens();
    let most = service.tokenizer.most_bytes(limit);
    if text.len() <= most {
        return Ok(());
    }
    let message = format!(
        "`{param}` has {} bytes, more than the {limit} tokens of the context can stand for ({most})",
        text.len()
    );
    Err(ApiError::bad_request(message, Some(param)))
}
