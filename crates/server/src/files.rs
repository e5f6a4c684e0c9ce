//! `/sandboxes/{id}/files`: files of the guest, streamed with flat memory in both directions.

use std::time::Duration;

use axum::Json as JsonReply;
use axum::body::{Body, BodyDataStream};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use sandbox::{FileReader, Leased, wire};
use tokio::time::timeout;

use crate::ask::octal_mode;
use crate::auth::Caller;
use crate::extract::Params;
use crate::refusal::Refusal;
use crate::router::App;
use crate::tell;

/// How long an upload that was refused is still read, so that the client sees the refusal and not a reset.
const DRAIN_WITHIN: Duration = Duration::from_secs(2);

fn guest_path(query: &mut Params) -> Result<String, Refusal> {
    let path = query.required("path")?;
    if !path.starts_with('/') || path.contains('\0') || path.len() > 4095 {
        let shown: String = path.chars().take(120).collect();
        return Err(Refusal::bad_request(format!("guest path {shown:?} is not possible"))
            .hint("use an absolute path of at most 4095 bytes without NUL, e.g. /home/user/x"));
    }
    Ok(path)
}

/// Reads a file, or tells of it (`stat=true`), or lists a directory (`ls=true`).
///
/// The reply of a read has the file's full size and mode in `x-bhatti-size` and `x-bhatti-mode`.
#[utoipa::path(
    get, path = "/sandboxes/{id}/files", tag = "files",
    params(
        ("id" = String, Path, description = "Name or id"),
        ("path" = String, Query, description = "Absolute path in the guest"),
        ("ls" = Option<bool>, Query, description = "List the directory"),
        ("stat" = Option<bool>, Query, description = "Tell of the file instead of reading it"),
        ("follow" = Option<bool>, Query, description = "With `stat`: tell of what a symbolic link points to"),
        ("offset" = Option<u64>, Query, description = "Bytes to skip"),
        ("limit" = Option<u64>, Query, description = "Bytes to read at most"),
        ("line_offset" = Option<u64>, Query, description = "Lines to skip"),
        ("line_limit" = Option<u64>, Query, description = "Lines to read at most"),
        ("max_bytes" = Option<u64>, Query, description = "Cap on the bytes sent; `x-bhatti-truncated: true` when it is certain to be reached"),
    ),
    responses(
        (status = 200, description = "The bytes; a FileStat with `stat`; a list of FileEntry with `ls`",
         content(
            (Vec<u8> = "application/octet-stream"),
            (Vec<api::FileEntry> = "application/json"),
         )),
        (status = 400, body = api::ErrorBody), (status = 404, body = api::ErrorBody),
    )
)]
pub(crate) async fn read(
    State(app): State<App>,
    Caller(owner): Caller,
    Path(id): Path<String>,
    mut query: Params,
) -> Result<Response, Refusal> {
    let path = guest_path(&mut query)?;
    let list = query.switch("ls")?.unwrap_or(false);
    let stat = query.switch("stat")?.unwrap_or(false);
    let follow = query.switch("follow")?.unwrap_or(false);
    let request = read_request(path, &mut query)?;
    query.done()?;
    if list {
        let entries = app.host.file_list(&owner, &id, &request.path).await?;
        return Ok(JsonReply(entries.iter().map(tell::file_entry).collect::<Vec<_>>()).into_response());
    }
    if stat {
        let stat = app.host.file_stat(&owner, &id, wire::StatRequest { path: request.path, follow }).await?;
        return Ok(JsonReply(tell::file_stat(&stat)).into_response());
    }
    let (offset, limit, max) = (request.offset, request.limit, request.max_bytes);
    let by_line = request.lines.is_some();
    let reader = app.host.file_read(&owner, &id, request).await?;
    let mut headers = stat_headers(reader.stat());
    let there = reader.stat().size_bytes.saturating_sub(offset);
    if !by_line && max.is_some_and(|max| there.min(limit.unwrap_or(u64::MAX)) > max) {
        headers.insert(HeaderName::from_static(api::FILE_TRUNCATED_HEADER), HeaderValue::from_static("true"));
    }
    // Without a length on purpose: files in /proc tell 0, and others may change while they are read. The last chunk
    // of the chunked coding says that the read came to its end; a read that broke off has none.
    Ok((headers, Body::from_stream(chunks(reader))).into_response())
}

fn read_request(path: String, query: &mut Params) -> Result<wire::FileRead, Refusal> {
    let (offset, limit) = (query.number("offset")?, query.number("limit")?);
    let (line_offset, line_limit) = (query.number("line_offset")?, query.number("line_limit")?);
    let by_line = line_offset.is_some() || line_limit.is_some();
    if by_line && (offset.is_some() || limit.is_some()) {
        return Err(Refusal::bad_request("a range is either of bytes or of lines")
            .hint("use `offset` and `limit`, or `line_offset` and `line_limit`"));
    }
    Ok(wire::FileRead {
        path,
        offset: offset.unwrap_or(0),
        limit,
        lines: by_line.then(|| wire::LineRange { offset: line_offset.unwrap_or(0), limit: line_limit }),
        max_bytes: query.number("max_bytes")?,
    })
}

fn chunks(
    reader: Leased<FileReader>,
) -> impl futures_util::Stream<Item = Result<Bytes, sandbox::Error>> + Send {
    stream::unfold(Some(reader), |reader| async move {
        let mut reader = reader?;
        match reader.next().await {
            Ok(Some(chunk)) => Some((Ok(chunk), Some(reader))),
            Ok(None) => None,
            Err(error) => Some((Err(error.into()), None)),
        }
    })
}

fn stat_headers(stat: &wire::FileStat) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(HeaderName::from_static(api::FILE_SIZE_HEADER), HeaderValue::from(stat.size_bytes));
    if let Ok(mode) = HeaderValue::from_str(&tell::octal(stat.mode)) {
        headers.insert(HeaderName::from_static(api::FILE_MODE_HEADER), mode);
    }
    headers
}

/// The headers of a read without its bytes.
#[utoipa::path(
    head, path = "/sandboxes/{id}/files", tag = "files",
    params(
        ("id" = String, Path, description = "Name or id"),
        ("path" = String, Query, description = "Absolute path in the guest"),
    ),
    responses((status = 200, description = "It is there"), (status = 404, description = "It is not"))
)]
pub(crate) async fn head(
    State(app): State<App>,
    Caller(owner): Caller,
    Path(id): Path<String>,
    mut query: Params,
) -> Result<Response, Refusal> {
    let path = guest_path(&mut query)?;
    query.done()?;
    let stat = app.host.file_stat(&owner, &id, wire::StatRequest { path, follow: true }).await?;
    Ok(stat_headers(&stat).into_response())
}

/// Replaces a file by the body, or leaves it as it is: nothing changes unless the whole body arrived.
#[utoipa::path(
    put, path = "/sandboxes/{id}/files", tag = "files",
    params(
        ("id" = String, Path, description = "Name or id"),
        ("path" = String, Query, description = "Absolute path in the guest"),
        ("mode" = Option<String>, Query, description = "Permission bits in octal; those of the old file, else 0644, when missing"),
        ("mkdirs" = Option<bool>, Query, description = "Make missing parent directories"),
    ),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses(
        (status = 200, body = api::FileStat),
        (status = 400, body = api::ErrorBody), (status = 404, body = api::ErrorBody),
        (status = 507, description = "The guest's disk is full", body = api::ErrorBody),
    )
)]
pub(crate) async fn write(
    State(app): State<App>,
    Caller(owner): Caller,
    Path(id): Path<String>,
    mut query: Params,
    request: Request,
) -> Result<JsonReply<api::FileStat>, Refusal> {
    let path = guest_path(&mut query)?;
    let mode = query.text("mode")?.as_deref().map(octal_mode).transpose()?;
    let mkdirs = query.switch("mkdirs")?.unwrap_or(false);
    query.done()?;
    let mut body = request.into_body().into_data_stream();
    let stat = async {
        let mut writer = app.host.file_write(&owner, &id, wire::FileWrite { path, mode, mkdirs }).await?;
        while let Some(chunk) = body.next().await {
            // Returning drops the writer, and the old file stays.
            let chunk = chunk.map_err(|error| {
                Refusal::new(StatusCode::BAD_REQUEST, "bad_request", format!("the upload broke off: {error}"))
            })?;
            writer.send(chunk).await.map_err(sandbox::Error::from)?;
        }
        Ok(writer.consume(|writer| writer.finish()).await.map_err(sandbox::Error::from)?)
    };
    let stat: Result<wire::FileStat, Refusal> = stat.await;
    match stat {
        Ok(stat) => Ok(JsonReply(tell::file_stat(&stat))),
        Err(refusal) => {
            drain(body).await;
            Err(refusal)
        }
    }
}

/// Takes the rest of an upload that was refused, so that its sender comes to read why.
pub(crate) async fn drain(mut body: BodyDataStream) {
    let _slow = timeout(DRAIN_WITHIN, async { while let Some(Ok(_)) = body.next().await {} }).await;
}
