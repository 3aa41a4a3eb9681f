//! The MCP server of a VM's host tools, on its loopback device.
//!
//! Without sessions: each request stands for itself and has one JSON answer, so that a program can come and go, and the
//! command needs no more than one request. Requests whose connection breaks take their call back. Whoever speaks to it is
//! a guest: requests are bounded, and so are connections.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rmcp::handler::server::ServerHandler;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, Implementation, ListToolsResult,
    PaginatedRequestParams, ServerCapabilities, ServerConfig, Tool,
};
use rmcp::service::RequestContext;
use rmcp::transport::streamable_http_server::session::never::NeverSessionManager;
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use rmcp::{ErrorData, RoleServer};
use rustix::net::sockopt::set_tcp_user_timeout;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};

use super::{COMMAND, ToolDesk, request};
use crate::guest_listener;

/// Agents keep one or two each; calls of the command have one each.
const CONNECTIONS: usize = 64;

/// A head comes at once from a program on the same machine. An idle connection is one that waits for a head.
const HEAD_DEADLINE: Duration = Duration::from_secs(300);

/// Answers are read at once, too.
const READ_DEADLINE: Duration = Duration::from_secs(60);

type Service = StreamableHttpService<McpTools, NeverSessionManager>;

/// Serves until the listener is dropped with this future.
pub(super) async fn serve(listener: TcpListener, desk: &Arc<ToolDesk>) {
    let config =
        StreamableHttpServerConfig::default().with_legacy_session_mode(false).with_json_response(true);
    let tools = McpTools(Arc::clone(desk));
    let service: Service = StreamableHttpService::new(
        move || Ok(tools.clone()),
        Arc::new(NeverSessionManager::default()),
        config,
    );
    guest_listener::serve(listener, CONNECTIONS, COMMAND, move |stream| connection(stream, service.clone()))
        .await;
}

async fn connection(stream: TcpStream, service: Service) -> Result<(), hyper::Error> {
    let answer = service_fn(move |request| {
        let service = service.clone();
        async move {
            Ok::<_, Infallible>(match request::whole(request).await {
                Ok(request) => service.handle(request).await,
                Err(refusal) => refusal.response().map(BodyExt::boxed),
            })
        }
    });
    // A deadline for answers that nobody reads; the other side's window may stay closed as long as it likes.
    let unread = u32::try_from(READ_DEADLINE.as_millis()).unwrap_or(u32::MAX);
    if let Err(error) = set_tcp_user_timeout(&stream, unread) {
        tracing::debug!(%error, "answers that nobody reads have no deadline");
    }
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .serve_connection(TokioIo::new(stream), answer)
        .await
}

#[derive(Debug, Clone)]
struct McpTools(Arc<ToolDesk>);

impl ServerHandler for McpTools {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
            .with_server_info(Implementation::new(COMMAND, env!("CARGO_PKG_VERSION")))
            .with_instructions("Functions of the application that runs this machine.")
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let tools = self.0.offer().allowed().map(|(name, tool)| {
            Tool::new(name.to_owned(), tool.description.clone(), Arc::clone(&tool.input_schema))
        });
        Ok(ListToolsResult::with_all_items(tools.collect()))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let input = Value::Object(request.arguments.unwrap_or_default());
        let called = tokio::select! {
            called = self.0.call(&request.name, input) => called,
            // The connection is gone. Only this tells; the library would let the call run to its end.
            () = context.ct.cancelled() => {
                return Err(ErrorData::internal_error("whoever called has gone", None));
            }
        };
        let result = match called {
            Ok(text) => CallToolResult::success(vec![ContentBlock::text(text)]),
            // What went wrong is for the model to read and to do better.
            Err(error) => CallToolResult::error(vec![ContentBlock::text(error.to_string())]),
        };
        Ok(result.into())
    }
}
