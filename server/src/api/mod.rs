//! HTTP: the way in. The only module that knows axum.
//!
//! A request passes through `server` (connections and their bounds), the router below,
//! `extract` (what handlers take from it) and one handler, which asks the manager or the objects
//! and writes the answer (`wire`) or a `problem`.

mod access;
mod audit;
mod bulk;
mod conditional;
mod connections;
mod create;
mod cursor;
mod events;
mod extract;
mod idempotency;
mod items;
mod objects;
mod operations;
mod prefer;
mod private;
mod problem;
mod quotas;
mod room;
mod schedules;
mod secrets;
mod server;
mod task_list;
mod task_types;
mod tasks;
mod tenants;
mod tls;
mod trial;
mod until;
mod uploads;
mod usage;
mod waiting;
mod wire;
mod write_deadline;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use bytes::Bytes;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub use tls::Tls;

use crate::limits::LimitOverrides;
use crate::manager::Manager;
use crate::objects::Objects;
use crate::room::Room;
use crate::secrets::Secrets;
use crate::tenants::Tenants;
use crate::turns::Places;

/// What the API needs of the rest.
pub struct App {
    /// Tasks and task types.
    pub manager: Manager,
    /// Objects.
    pub objects: Objects,
    /// Tenants and keys.
    pub tenants: Arc<Tenants>,
    /// Secrets.
    pub secrets: Secrets,
    /// Where attempts run; for the metrics.
    pub room: Arc<Room>,
    /// The largest input that any task can have.
    pub max_input_bytes: u64,
    /// The largest component that can be uploaded.
    pub max_component_bytes: u64,
    /// The most memory that a task can have, in bytes.
    pub max_memory_bytes: u64,
}

/// How the server treats its clients.
pub struct ServerSettings {
    /// Connections at once.
    pub max_connections: usize,
    /// The most tenants that there may be.
    pub max_tenants: u64,
    /// Speaks TLS on the network; `None`: HTTP.
    pub tls: Option<Arc<Tls>>,
    /// How long a client may take to send a request's head, its body, or to read some of its answer.
    pub client_timeout: Duration,
}

/// Serves until `stop` turns true, on the network and on the socket in the data directory. Requests in flight may go on for a few seconds then.
pub async fn serve(
    listener: TcpListener,
    private: UnixListener,
    settings: ServerSettings,
    app: App,
    stop: watch::Receiver<bool>,
) {
    let api = Arc::new(Api::new(app, &settings));
    let router = router(&api);
    let private = private::serve(private, router.clone(), api.traffic.clone(), stop.clone());
    let public = server::serve(listener, settings, router, api.traffic.clone(), stop);
    tokio::join!(public, private);
}

/// What every handler can use.
struct Api {
    manager: Manager,
    objects: Objects,
    secrets: Secrets,
    room: Arc<Room>,
    tenants: Arc<Tenants>,
    max_tenants: u64,
    max_input_bytes: u64,
    max_component_bytes: u64,
    max_memory_bytes: u64,
    /// Turns of looking at components before they are stored.
    checks: Places,
    uploads: extract::Uploads,
    traffic: Arc<server::Traffic>,
    connections: Arc<connections::Connections>,
    openapi: Bytes,
    docs: Arc<utoipa_swagger_ui::Config<'static>>,
}

/// Every path. Each route comes with its documentation: [`routes!`] takes nothing without.
fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(create::create))
        .routes(routes!(task_list::list, create::create_many))
        .routes(routes!(tasks::get, tasks::delete))
        .routes(routes!(tasks::status))
        .routes(routes!(tasks::result))
        .routes(routes!(tasks::logs))
        .routes(routes!(tasks::attempts))
        .routes(routes!(events::of_task))
        .routes(routes!(events::of_tenant))
        .routes(routes!(tasks::cancel))
        .routes(routes!(tasks::retry))
        .routes(routes!(bulk::cancel))
        .routes(routes!(bulk::retry))
        .routes(routes!(bulk::delete))
        .routes(routes!(bulk::list))
        .routes(routes!(bulk::get))
        .routes(routes!(objects::list))
        .routes(routes!(objects::get, objects::head, objects::put, objects::remove))
        .routes(routes!(schedules::list))
        .routes(routes!(schedules::get, schedules::put, schedules::remove))
        .routes(routes!(secrets::list))
        .routes(routes!(secrets::put, secrets::remove))
        .routes(routes!(task_types::list))
        .routes(routes!(task_types::get, task_types::patch, uploads::put, uploads::remove))
        .routes(routes!(uploads::bytes))
        .routes(routes!(trial::test))
        .routes(routes!(tenants::own_keys, tenants::create_own_key))
        .routes(routes!(tenants::revoke_own_key))
        .routes(routes!(quotas::own))
        .routes(routes!(tenants::list))
        .routes(routes!(tenants::get, tenants::put, tenants::patch))
        .routes(routes!(tenants::keys, tenants::create_key))
        .routes(routes!(tenants::revoke_key))
        .routes(routes!(usage::own))
        .routes(routes!(usage::of_tenant))
        .routes(routes!(audit::list))
        .routes(routes!(operations::healthz))
        .routes(routes!(operations::readyz))
        .routes(routes!(operations::metrics))
        .routes(routes!(operations::openapi))
        .routes(routes!(operations::docs))
        .routes(routes!(operations::docs_index))
        .routes(routes!(operations::docs_file))
        .routes(routes!(operations::problems))
        .routes(routes!(operations::problem))
}

/// What the OpenAPI document says of all calls together.
const DESCRIPTION: &str = "Runs WASM components as background tasks, sandboxed and durable.\n\n\
    Every error is a problem (RFC 9457, `application/problem+json`) of one of the types under `/problems`. A path that \
    is not listed here answers 404 (`/problems/not-found`), a method that a path does not list answers 405 \
    (`/problems/method-not-allowed`) with `Allow`; `HEAD` works wherever `GET` does. Times are RFC 3339 in UTC with \
    milliseconds.";

/// What the OpenAPI document says beside its paths.
#[derive(OpenApi)]
#[openapi(
    info(title = "taskcell", description = DESCRIPTION),
    components(schemas(problem::ProblemBody, LimitOverrides)),
    tags(
        (name = "tasks", description = "Create tasks and read what became of them"),
        (name = "events", description = "What happens to tasks, as it happens"),
        (name = "objects", description = "The tenant's named bytes, the same that its tasks see"),
        (name = "schedules", description = "Tasks that are created again and again, at their times"),
        (name = "secrets", description = "Values that the host puts into requests of tasks, and that nobody reads back"),
        (name = "task types", description = "What can be run"),
        (name = "keys", description = "What clients authenticate with"),
        (name = "tenants", description = "Those who share the server; for its operator"),
        (name = "operations", description = "Health, metrics and reference"),
    )
)]
struct Document;

impl Api {
    fn new(app: App, settings: &ServerSettings) -> Api {
        let App { manager, objects, tenants, secrets, room, max_input_bytes, max_component_bytes, max_memory_bytes } =
            app;
        let connections = Arc::new(connections::Connections::new(settings.max_connections));
        let largest = objects.max_bytes().max(max_input_bytes).max(max_component_bytes);
        Api {
            tenants,
            max_tenants: settings.max_tenants,
            max_input_bytes,
            max_component_bytes,
            max_memory_bytes,
            checks: Places::new(1),
            uploads: extract::Uploads::new(largest, settings.client_timeout, connections.clone()),
            traffic: Arc::new(server::Traffic::new(settings.max_connections)),
            connections,
            openapi: document(routes().into_openapi()).into(),
            // No badge of an online validator: the page must work without the internet, and tell nobody.
            docs: Arc::new(utoipa_swagger_ui::Config::from("/openapi.json").validator_url("none")),
            manager,
            objects,
            secrets,
            room,
        }
    }
}

fn router(api: &Arc<Api>) -> Router {
    Router::from(routes())
        .route_layer(axum::middleware::from_fn_with_state(api.clone(), access::check))
        .fallback(problem::not_found)
        .method_not_allowed_fallback(problem::method_not_allowed)
        .with_state(api.clone())
}

/// The OpenAPI document as it is sent. A parameter that takes the rest of a path is written as
/// others are: OpenAPI knows no other.
fn document(mut openapi: utoipa::openapi::OpenApi) -> String {
    access::document(&mut openapi);
    let paths = std::mem::take(&mut openapi.paths.paths);
    openapi.paths.paths = paths.into_iter().map(|(path, item)| (path.replace("{*", "{"), item)).collect();
    // Made of strings and maps: there is nothing in it that cannot be written as JSON.
    openapi.to_json().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use serde_json::Value;

    use super::*;

    /// Every string of a member with that name, anywhere in the document.
    fn strings<'a>(document: &'a Value, member: &str, found: &mut Vec<&'a str>) {
        match document {
            Value::Object(object) => {
                found.extend(object.get(member).and_then(Value::as_str));
                object.values().for_each(|value| strings(value, member, found));
            }
            Value::Array(array) => array.iter().for_each(|value| strings(value, member, found)),
            _ => {}
        }
    }

    #[test]
    fn the_document_is_whole() {
        let document: Value = serde_json::from_str(&document(routes().into_openapi())).unwrap();
        assert!(document["openapi"].as_str().unwrap().starts_with("3.1."));
        let mut references = Vec::new();
        strings(&document, "$ref", &mut references);
        for reference in references {
            assert!(document.pointer(reference.trim_start_matches('#')).is_some(), "{reference}");
        }
        let mut ids = Vec::new();
        strings(&document, "operationId", &mut ids);
        assert_eq!(ids.iter().collect::<HashSet<_>>().len(), ids.len(), "{ids:?}");
        assert!(document["paths"]["/objects/{name}"]["put"]["responses"]["413"].is_object());
    }

    #[test]
    fn the_bounds_of_quotas_are_told() {
        let document: Value = serde_json::from_str(&document(routes().into_openapi())).unwrap();
        let quotas = &document["components"]["schemas"]["QuotaPatch"]["properties"];
        for (name, least) in [("objects", 0), ("submit_burst", 1), ("running_tasks", 1)] {
            assert_eq!(
                (&quotas[name]["minimum"], &quotas[name]["maximum"]),
                (&least.into(), &crate::quotas::MOST.into())
            );
        }
    }

    #[test]
    fn every_problem_is_documented() {
        let document = document(routes().into_openapi());
        for kind in problem::Kind::ALL {
            assert!(document.contains(&format!("`{}`", kind.uri())), "{kind:?}");
        }
    }
}
