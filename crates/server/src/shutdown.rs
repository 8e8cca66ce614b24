//! In: a listener, the state and the wish to stop. Out: served connections, then a clean end.
//!
//! After the wish no connection and no request is accepted; requests in flight have `shutdown_timeout` to finish,
//! then the engine stops and their streams end with an error event.

use crate::app::router;
use crate::state::AppState;
use axum::serve::ListenerExt as _;
use std::future::{Future, IntoFuture as _};
use std::io;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

/// How long streams have to say that the server stopped, and the trace to reach its file.
const FAREWELL: Duration = Duration::from_secs(2);

/// Serves until `shutdown` resolves and the requests in flight have ended.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    state: AppState,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    // Small events go out at once; a delayed acknowledgement would hold them for 40 ms.
    let listener = listener.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY was not set");
        }
    });
    let (stopping, stopped) = oneshot::channel();
    let engine = state.engine().clone();
    let signal = async move {
        shutdown.await;
        tracing::info!("shutting down: no new requests, those in flight go on");
        engine.begin_shutdown(true);
        let _ = stopping.send(());
    };
    let server = axum::serve(listener, router(state.clone())).with_graceful_shutdown(signal);
    let mut server = std::pin::pin!(server.into_future());

    tokio::select! {
        ended = &mut server => return finish(&state, ended).await,
        _ = stopped => {}
    }
    let timeout = state.config().shutdown_timeout;
    if let Ok(ended) = tokio::time::timeout(timeout, &mut server).await {
        return finish(&state, ended).await;
    }
    tracing::warn!(?timeout, "requests still run; they are ended now");
    state.engine().begin_shutdown(false);
    let ended = tokio::time::timeout(FAREWELL, server).await.unwrap_or(Ok(()));
    finish(&state, ended).await
}

async fn finish(state: &AppState, ended: io::Result<()>) -> io::Result<()> {
    state.engine().begin_shutdown(false);
    if let Some(recorder) = &state.config().trace_recorder {
        recorder.flush(FAREWELL).await;
    }
    ended
}
