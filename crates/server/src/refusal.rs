//! How a request is refused: a status, a word for programs, a line for people and the way out.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use sandbox::ErrorKind;

/// An HTTP reply with a status of 400 or above.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    status: StatusCode,
    code: &'static str,
    message: String,
    hint: String,
}

impl Refusal {
    /// A refusal without a way out.
    #[must_use]
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), hint: String::new() }
    }

    /// 400 `bad_request`.
    #[must_use]
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", message)
    }

    /// Adds the way out.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// The status of the reply.
    #[must_use]
    pub const fn status(&self) -> StatusCode {
        self.status
    }

    /// The body of the reply.
    #[must_use]
    pub fn detail(&self) -> api::ErrorDetail {
        api::ErrorDetail {
            code: self.code.to_owned(),
            message: self.message.clone(),
            hint: self.hint.clone(),
        }
    }
}

/// The one place that chooses a status for a failed verb.
const fn status_of(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::BadRequest
        | ErrorKind::GuestRefused
        | ErrorKind::CommandNotFound
        | ErrorKind::NotExecutable => StatusCode::BAD_REQUEST,
        ErrorKind::NotFound | ErrorKind::GuestNotFound => StatusCode::NOT_FOUND,
        // Asking again does not help, nor does waiting: something of theirs must go first.
        ErrorKind::QuotaExceeded | ErrorKind::Forbidden => StatusCode::FORBIDDEN,
        // Damage is a conflict and not a 500: asking again does not help, asking for something else does.
        ErrorKind::Conflict
        | ErrorKind::InUse
        | ErrorKind::VolumeBusy
        | ErrorKind::SlowPath
        | ErrorKind::Corrupt
        | ErrorKind::Cancelled => StatusCode::CONFLICT,
        ErrorKind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        // Memory comes back by itself when others go to sleep, a full disk does not.
        ErrorKind::Busy | ErrorKind::NoMemory | ErrorKind::NotReady | ErrorKind::ShuttingDown => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        ErrorKind::NoSpace | ErrorKind::GuestNoSpace => StatusCode::INSUFFICIENT_STORAGE,
        ErrorKind::GuestTimeout | ErrorKind::Timeout => StatusCode::GATEWAY_TIMEOUT,
        ErrorKind::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
        ErrorKind::StreamBroken
        | ErrorKind::NotListening
        | ErrorKind::RegistryDenied
        | ErrorKind::Registry => StatusCode::BAD_GATEWAY,
        ErrorKind::Vmm | ErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl From<sandbox::Error> for Refusal {
    fn from(error: sandbox::Error) -> Self {
        let status = status_of(error.kind());
        let message = error.with_causes();
        if status == StatusCode::INTERNAL_SERVER_ERROR {
            tracing::error!(code = error.kind().code(), "{message}");
        }
        Self { status, code: error.kind().code(), message, hint: error.way_out().to_owned() }
    }
}

impl From<types::InvalidSpec> for Refusal {
    fn from(error: types::InvalidSpec) -> Self {
        Self::bad_request(error.message).hint(error.hint)
    }
}

impl From<types::NameError> for Refusal {
    fn from(error: types::NameError) -> Self {
        Self::bad_request(error.to_string())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let wait = matches!(self.status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS);
        let mut response = (self.status, Json(api::ErrorBody { error: self.detail() })).into_response();
        if wait {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_verb_keeps_its_word_its_causes_and_its_way_out() {
        let error = sandbox::Error::new(ErrorKind::NotFound, "image \"x\": there is no such image")
            .hint("`bhatti image list` shows them");
        let refusal = Refusal::from(error);
        assert_eq!(refusal.status(), StatusCode::NOT_FOUND);
        assert_eq!(refusal.detail().code, "not_found");
        assert!(refusal.detail().hint.contains("image list"));
    }

    #[test]
    fn whoever_must_wait_is_told_how_long() {
        let busy = Refusal::from(sandbox::Error::new(ErrorKind::Busy, "busy")).into_response();
        assert_eq!(busy.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(busy.headers().contains_key(header::RETRY_AFTER));
        let full = Refusal::from(sandbox::Error::new(ErrorKind::NoSpace, "full")).into_response();
        assert_eq!(full.status(), StatusCode::INSUFFICIENT_STORAGE);
        assert!(!full.headers().contains_key(header::RETRY_AFTER));
    }
}
