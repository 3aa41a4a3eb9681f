//! What agents ask permission for. A request is left with the sidecar, which takes the first reply by its id and rejects
//! what nobody answers: nothing of it is kept here.

use agentos::{PermissionReply, PermissionRequest, PermissionRequests};
use napi::bindgen_prelude::Object;
use napi::{Env, Result};
use napi_derive::napi;
use serde_json::json;

use crate::events::Subscription;
use crate::listener::{OnText, Pace, TextListener};
use crate::promise;
use crate::vm::Vm;

#[napi]
impl Vm {
    /// `on_request` is told what waits already, then what comes. While there is a subscription, requests wait for a reply.
    #[napi]
    pub fn on_permission_request(
        &self,
        env: &Env,
        session_id: String,
        on_request: OnText<'_>,
    ) -> Result<Subscription> {
        let requests = self.session(env, &session_id)?.permission_requests();
        let pace = Pace::default();
        let listener = TextListener::new(&on_request, &pace)?;
        let task = self.keep_telling(follow(requests, listener, pace))?;
        Ok(Subscription::new(Vec::new(), task))
    }

    /// A promise of nothing.
    #[napi]
    pub fn respond_permission<'env>(
        &self,
        env: &'env Env,
        session_id: String,
        permission_id: String,
        reply: String,
    ) -> Result<Object<'env>> {
        let vm = self.vm.clone();
        // The TypeScript half lets no other words through.
        let reply = match reply.as_str() {
            "once" => PermissionReply::Once,
            "always" => PermissionReply::Always,
            _ => PermissionReply::Reject,
        };
        promise::of(env, async move {
            vm.resume_session(&session_id)?.respond_permission(&permission_id, reply).await
        })
    }
}

/// Ends with the session.
async fn follow(mut requests: PermissionRequests, listener: TextListener, pace: Pace) {
    while let Some(request) = pace.keep(requests.next()).await {
        let told = shape(&request);
        request.leave_open();
        listener.tell(told);
    }
}

fn shape(request: &PermissionRequest) -> String {
    let mut object = json!({ "permissionId": request.permission_id(), "params": request.params() });
    if let Some(description) = request.description() {
        object["description"] = description.into();
    }
    object.to_string()
}
