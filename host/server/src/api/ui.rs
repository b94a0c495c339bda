//! The web page at `/ui`: files that are part of the program, under a policy that lets nothing else
//! in.

use std::sync::Arc;

use axum::Router;
use axum::extract::Path;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::error::ApiError;
use crate::service::Service;

/// The content security policy: the page talks to this server alone; texts of models and modules
/// can run nothing.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// An array of names with the contents of these files.
macro_rules! files {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_str!(concat!("../../ui/", $name)))),*]
    };
}

/// Every file of the page, by name.
const FILES: [(&str, &str); 29] = files![
    "admin-view.js",
    "api.js",
    "chart.js",
    "dom.js",
    "forest.js",
    "format.js",
    "generate.js",
    "heat-canvas.js",
    "index.html",
    "keys.js",
    "main.js",
    "metrics.js",
    "palette.js",
    "reply.js",
    "scale.js",
    "settings.js",
    "store.js",
    "style.css",
    "tip.js",
    "tokens.js",
    "traces.js",
    "view-chat.js",
    "view-compare.js",
    "view-experiments.js",
    "view-heat-map.js",
    "view-library.js",
    "view-live.js",
    "view-plugins.js",
    "views.css",
];

/// `GET /ui` and `GET /ui/{name}`. They need no key, as the page holds none: it sends the user's
/// key with its own requests.
pub(super) fn routes() -> Router<Arc<Service>> {
    Router::new()
        .route("/ui", get(|| async { file("index.html") }))
        .route("/ui/", get(|| async { file("index.html") }))
        .route("/ui/{name}", get(|Path(name): Path<String>| async move { file(&name) }))
}

/// A file with its type and the policy, or 404. Names are compared with a list, so that no path
/// leads to the disk.
fn file(name: &str) -> Response {
    let Some((_, content)) = FILES.iter().find(|(known, _)| *known == name) else {
        return ApiError::not_found(format!("the page has no file `{name}`"), None).into_response();
    };
    let kind = match name.rsplit_once('.') {
        Some((_, "js")) => "text/javascript; charset=utf-8",
        Some((_, "css")) => "text/css; charset=utf-8",
        _ => "text/html; charset=utf-8",
    };
    let headers = [
        (CONTENT_TYPE, kind),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        // A new version of the program has new files under the same names.
        (CACHE_CONTROL, "no-cache"),
    ];
    (headers, *content).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file that is forgotten here would be missing in the page.
    #[test]
    fn every_file_of_the_folder_is_served() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/ui");
        let mut found: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        found.sort();
        let mut served: Vec<&str> = FILES.iter().map(|(name, _)| *name).collect();
        served.sort_unstable();
        assert_eq!(found, served);
    }
}
