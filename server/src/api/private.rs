//! The socket in the data directory, for the command line.

use std::sync::Arc;

use axum::Router;
use hyper::server::conn::http1;
use tokio::net::UnixListener;
use tokio::sync::{Semaphore, watch};
use tokio::time::sleep;

use super::access::Peer;
use super::server::{ACCEPT_PAUSE, Traffic, connection, stopped};
use super::waiting::Connection;

/// Connections on the socket in the data directory.
const PRIVATE_CONNECTIONS: usize = 8;

/// Serves on the socket in the data directory, which only the server's own user can open, until `stop` turns true.
pub(super) async fn serve(
    listener: UnixListener,
    router: Router,
    traffic: Arc<Traffic>,
    mut stop: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(PRIVATE_CONNECTIONS));
    let http = http1::Builder::new();
    while let Ok(place) = places.clone().acquire_owned().await {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopped(&mut stop) => return,
        };
        let Ok((stream, _)) = accepted else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let (http, router, traffic, stop) = (http.clone(), router.clone(), traffic.clone(), stop.clone());
        tokio::spawn(async move {
            let waits = Arc::new(Connection::alone());
            connection(&http, stream, Peer::Private, router, traffic, &waits, stop).await;
            drop(place);
        });
    }
}
