//! The model of all processes, asked for and changed over HTTP: see [`crate::swap`].

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Refusal, Server};
use crate::query::peek::Order;
use crate::swap::{Choice, Swap, SwapOrder};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    /// Where it lies; the built-in model if nothing is said.
    directory: Option<PathBuf>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    /// Whether it is to take the place of the current one when it has scored everything.
    #[serde(default)]
    promote: bool,
}

fn swap(server: &Server) -> Result<&Arc<Swap>, Refusal> {
    let swap = server.process.swap();
    swap.ok_or_else(|| conflict("this Assay scores nothing: model.enabled is false"))
}

fn conflict(message: impl Into<String>) -> Refusal {
    Refusal::new(StatusCode::CONFLICT, message)
}

/// How the models stand, over all processes.
pub(super) async fn tell(State(server): State<Server>) -> Result<Json<Value>, Refusal> {
    let here = swap(&server)?.tell();
    let mut told = server.process.statuses().processes();
    // What is told of this process may be a second old.
    let own = server.process.plan().cluster.process;
    told.retain(|told| told["process"] != own);
    let mut models: Vec<Value> = told.iter_mut().map(|told| told["model"].take()).collect();
    models.insert(0, here);
    Ok(Json(summary(&models)))
}

fn summary(models: &[Value]) -> Value {
    let first = &models[0];
    let of_candidates = |name: &str| {
        let candidates = models.iter().map(|model| &model["candidate"]);
        candidates
            .map(|candidate| candidate[name].clone())
            .collect::<Vec<_>>()
    };
    let all = |name: &str| of_candidates(name).iter().all(|value| value == true);
    let sum = |name: &str| {
        of_candidates(name)
            .iter()
            .filter_map(Value::as_u64)
            .sum::<u64>()
    };
    let mut candidate = models.iter().map(|model| &model["candidate"]);
    let candidate = candidate
        .find(|candidate| !candidate.is_null())
        .map(|told| {
            json!({
                "name": told["name"],
                "fingerprint": told["fingerprint"],
                "promote": told["promote"],
                "begun": all("begun"),
                "scored": sum("scored"),
                "waiting": sum("waiting"),
            })
        });
    let changed = models
        .iter()
        .all(|model| model["fingerprint"] == first["fingerprint"]);
    let failure = models.iter().map(|model| &model["failure"]);
    json!({
        "name": first["name"],
        "fingerprint": first["fingerprint"],
        "alike": changed,
        "candidate": candidate,
        "failure": failure.clone().find(|failure| !failure.is_null()),
        "fast": first["fast"]["name"],
    })
}

/// Has another model score beside the current one, and promotes it if that is asked for.
pub(super) async fn load(
    State(server): State<Server>,
    wanted: String,
) -> Result<Json<Value>, Refusal> {
    let swap = swap(&server)?;
    let wanted = serde_json::from_str::<Wanted>(&wanted);
    let wanted =
        wanted.map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, error.to_string()))?;
    let mut choice = Choice {
        directory: wanted.directory,
        labels: wanted.labels,
        fingerprint: String::new(),
        name: String::new(),
    };
    // Tried here first, so that whoever asks hears at once why it cannot be used.
    let (tried, engine) = (choice.clone(), swap.engine());
    let tried = tokio::task::spawn_blocking(move || tried.load(engine)).await;
    let tried = tried
        .map_err(|error| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    let (model, name) =
        tried.map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, format!("{error:#}")))?;
    model.fingerprint().clone_into(&mut choice.fingerprint);
    choice.name = name;
    let told = swap.tell();
    if told["fingerprint"] == choice.fingerprint {
        return Err(conflict(format!("{} is the model already", choice.name)));
    }
    let candidate = &told["candidate"];
    if !candidate.is_null() && candidate["fingerprint"] != choice.fingerprint {
        let name = candidate["name"].as_str().unwrap_or_default();
        let message = format!("{name} is tried already; `assay model drop` lets it go");
        return Err(conflict(message));
    }
    let fingerprint = choice.fingerprint.clone();
    let order = SwapOrder::Load(choice, wanted.promote);
    server.peeker.order(Order::Swap(order));
    Ok(Json(
        json!({ "ordered": "load", "fingerprint": fingerprint }),
    ))
}

/// Promotes the candidate when it has scored everything.
pub(super) async fn promote(State(server): State<Server>) -> Result<Json<Value>, Refusal> {
    let fingerprint = candidate(&server)?;
    server.peeker.order(Order::Swap(SwapOrder::Promote));
    Ok(Json(
        json!({ "ordered": "promote", "fingerprint": fingerprint }),
    ))
}

/// Lets the candidate go.
pub(super) async fn drop_candidate(State(server): State<Server>) -> Result<Json<Value>, Refusal> {
    let fingerprint = candidate(&server)?;
    server.peeker.order(Order::Swap(SwapOrder::Drop));
    Ok(Json(
        json!({ "ordered": "drop", "fingerprint": fingerprint }),
    ))
}

/// The candidate's fingerprint.
fn candidate(server: &Server) -> Result<String, Refusal> {
    let told = swap(server)?.tell();
    let candidate = told["candidate"]["fingerprint"].as_str().map(str::to_owned);
    candidate.ok_or_else(|| conflict("no model is tried beside the current one"))
}
