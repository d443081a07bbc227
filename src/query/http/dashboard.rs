//! The page at `/`: its files are part of the program, so it needs nothing from anywhere else.

use axum::Router;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;

use super::Server;

/// What the page may do: nothing but with files and answers of this server.
const POLICY: &str =
    "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'";

const HTML: &str = "text/html; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";

macro_rules! files {
    ($($path:literal $kind:ident $file:literal,)*) => {
        [$(($path, $kind, include_bytes!(concat!("../../dashboard/", $file)).as_slice()),)*]
    };
}

/// Each file's path, type and content.
const FILES: [(&str, &str, &[u8]); 16] = files![
    "/" HTML "index.html",
    "/dashboard.css" STYLE "dashboard.css",
    "/dashboard.js" SCRIPT "dashboard.js",
    "/agreement.js" SCRIPT "agreement.js",
    "/charts.js" SCRIPT "charts.js",
    "/data.js" SCRIPT "data.js",
    "/dom.js" SCRIPT "dom.js",
    "/events.js" SCRIPT "events.js",
    "/live.js" SCRIPT "live.js",
    "/mentions.js" SCRIPT "mentions.js",
    "/panel.js" SCRIPT "panel.js",
    "/status.js" SCRIPT "status.js",
    "/theme.js" SCRIPT "theme.js",
    "/vendor/chart.umd.min.js" SCRIPT "vendor/chart.umd.min.js",
    "/v1/openapi.json" JSON "../query/openapi.json",
    "/vendor/LICENSE.md" TEXT "vendor/LICENSE.md",
];

/// The routes of the page's files.
pub(super) fn routes() -> Router<Server> {
    FILES
        .iter()
        .fold(Router::new(), |routes, (path, kind, content)| {
            routes.route(path, get(async || file(kind, content)))
        })
}

fn file(kind: &'static str, content: &'static [u8]) -> impl IntoResponse {
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        // Another version of the program may answer next time.
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, content)
}
