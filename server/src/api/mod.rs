//! HTTP: the way in. The only module that knows axum.
//!
//! A request passes through [`server`] (connections and their bounds), the router below,
//! [`extract`] (what handlers take from it) and one handler, which asks the manager or the objects
//! and writes the answer ([`wire`]) or a [`problem`].

mod conditional;
mod cursor;
mod extract;
mod objects;
mod operations;
mod prefer;
mod problem;
mod server;
mod task_types;
mod tasks;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use bytes::Bytes;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::limits::LimitOverrides;
use crate::manager::Manager;
use crate::objects::Objects;
use crate::room::Room;

/// Who everything belongs to as long as there are no keys.
const DEFAULT_TENANT: &str = "default";

/// What the API needs of the rest.
pub struct App {
    /// Tasks and task types.
    pub manager: Manager,
    /// Objects.
    pub objects: Objects,
    /// Where attempts run; for the metrics.
    pub room: Arc<Room>,
    /// The largest input that any task can have.
    pub max_input_bytes: u64,
}

/// How the server treats its clients.
pub struct ServerSettings {
    /// Connections at once.
    pub max_connections: usize,
    /// How long a client may take to send a request's head, its body, or to read some of its answer.
    pub client_timeout: Duration,
}

/// Serves until `stop` turns true. Requests in flight may go on for a few seconds then.
pub async fn serve(listener: TcpListener, settings: ServerSettings, app: App, stop: watch::Receiver<bool>) {
    let (router, api) = router(app, &settings);
    server::serve(listener, settings.client_timeout, router, api, stop).await;
}

/// What every handler can use.
struct Api {
    manager: Manager,
    objects: Objects,
    room: Arc<Room>,
    tenant: Arc<str>,
    max_input_bytes: u64,
    uploads: extract::Uploads,
    connections: Connections,
    answered: operations::Answered,
    openapi: Bytes,
    docs: Arc<utoipa_swagger_ui::Config<'static>>,
}

/// Places for connections; whoever holds none is not served.
struct Connections {
    most: usize,
    places: Arc<Semaphore>,
}

impl Connections {
    fn open(&self) -> usize {
        self.most.saturating_sub(self.places.available_permits())
    }
}

/// Every path. Each route comes with its documentation: [`routes`] takes nothing without.
fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(tasks::create))
        .routes(routes!(tasks::list))
        .routes(routes!(tasks::get, tasks::delete))
        .routes(routes!(tasks::status))
        .routes(routes!(tasks::result))
        .routes(routes!(tasks::logs))
        .routes(routes!(tasks::cancel))
        .routes(routes!(objects::list))
        .routes(routes!(objects::get, objects::head, objects::put, objects::remove))
        .routes(routes!(task_types::list))
        .routes(routes!(task_types::get))
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

/// What the OpenAPI document says beside its paths.
#[derive(OpenApi)]
#[openapi(
    info(title = "taskcell", description = "Runs WASM components as background tasks, sandboxed and durable."),
    components(schemas(problem::ProblemBody, LimitOverrides)),
    tags(
        (name = "tasks", description = "Create tasks and read what became of them"),
        (name = "objects", description = "The tenant's named bytes, the same that its tasks see"),
        (name = "task types", description = "What can be run"),
        (name = "operations", description = "Health, metrics and reference"),
    )
)]
struct Document;

fn router(app: App, settings: &ServerSettings) -> (Router, Arc<Api>) {
    let App { manager, objects, room, max_input_bytes } = app;
    let (router, openapi) = routes().split_for_parts();
    let api = Arc::new(Api {
        tenant: DEFAULT_TENANT.into(),
        max_input_bytes,
        uploads: extract::Uploads::new(objects.max_bytes().max(max_input_bytes), settings.client_timeout),
        connections: Connections {
            most: settings.max_connections,
            places: Arc::new(Semaphore::new(settings.max_connections)),
        },
        answered: operations::Answered::default(),
        openapi: document(openapi),
        // No badge of an online validator: the page must work without the internet, and tell nobody.
        docs: Arc::new(utoipa_swagger_ui::Config::from("/openapi.json").validator_url("none")),
        manager,
        objects,
        room,
    });
    let router = router
        .fallback(problem::not_found)
        .method_not_allowed_fallback(problem::method_not_allowed)
        .with_state(api.clone());
    (router, api)
}

/// The OpenAPI document as it is sent. A parameter that takes the rest of a path is written as
/// others are: OpenAPI knows no other.
fn document(mut openapi: utoipa::openapi::OpenApi) -> Bytes {
    let paths = std::mem::take(&mut openapi.paths.paths);
    openapi.paths.paths = paths.into_iter().map(|(path, item)| (path.replace("{*", "{"), item)).collect();
    // Made of strings and maps: there is nothing in it that cannot be written as JSON.
    openapi.to_json().unwrap_or_default().into()
}
