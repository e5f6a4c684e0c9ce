//! `GET /metrics`: the host in numbers, for Prometheus or as JSON, and how requests are counted.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Json;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use sandbox::SampleValue;

use crate::auth::Admin;
use crate::refusal::Refusal;
use crate::router::App;

/// The text format that Prometheus reads.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// How many requests of each class had which status since the daemon started.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    /// Held for an addition or a copy only.
    counts: Mutex<BTreeMap<(&'static str, u16), u64>>,
}

impl Requests {
    fn add(&self, class: &'static str, status: u16) {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner).entry((class, status)).or_default() += 1;
    }

    fn family(&self) -> api::MetricFamily {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let sample = |((class, status), count): ((&str, u16), u64)| api::MetricSample {
            labels: [("class".to_owned(), class.to_owned()), ("status".to_owned(), status.to_string())]
                .into(),
            // More than 2^32 requests are told as that many.
            value: Some(u32::try_from(count).unwrap_or(u32::MAX).into()),
            histogram: None,
        };
        api::MetricFamily {
            name: "bhatti_http_requests_total".to_owned(),
            help: "Requests that were answered, by what they were for and by status.".to_owned(),
            kind: "counter".to_owned(),
            samples: counts.into_iter().map(sample).collect(),
        }
    }
}

/// Counts a request once the head of its answer is there.
pub(crate) async fn count(State(requests): State<Arc<Requests>>, request: Request, next: Next) -> Response {
    let path = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let class = class(request.method(), path);
    let response = next.run(request).await;
    requests.add(class, response.status().as_u16());
    response
}

/// As [`count`], on the listener of what is published.
pub(crate) async fn count_published(
    State(requests): State<Arc<Requests>>,
    request: Request,
    next: Next,
) -> Response {
    let response = next.run(request).await;
    requests.add("published", response.status().as_u16());
    response
}

/// What a request is for, by its route.
pub(crate) fn class(method: &Method, path: Option<&str>) -> &'static str {
    let Some(path) = path else { return "unknown" };
    let Some(of_sandbox) = path.strip_prefix("/sandboxes/{id}/") else {
        return match path {
            "/health" | "/metrics" => "watch",
            "/events" => "events",
            _ if *method == Method::GET => "read",
            _ => "change",
        };
    };
    match of_sandbox.split('/').next().unwrap_or_default() {
        "exec" => "exec",
        "shell" => "shell",
        "files" => "files",
        "proxy" | "tunnel" => "proxy",
        _ if *method == Method::GET => "read",
        _ => "change",
    }
}

/// The host in numbers. No guest is woken or asked for it, and no stored file is read.
///
/// Prometheus' text format, or JSON with `Accept: application/json`. Counters begin at zero when the daemon starts.
#[utoipa::path(
    get, path = "/metrics", tag = "host",
    responses(
        (status = 200, content(
            (String = "text/plain"),
            (api::Metrics = "application/json"),
        )),
        (status = 401, body = api::ErrorBody),
        (status = 403, description = "Not the admin", body = api::ErrorBody),
    )
)]
pub(crate) async fn metrics(
    // They are of all owners together.
    _admin: Admin,
    State(app): State<App>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let mut families: Vec<_> = app.host.metrics().await?.into_iter().filter_map(family).collect();
    families.push(app.requests.family());
    families.retain(|family| !family.samples.is_empty());
    let metrics = api::Metrics { families };
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if accept.contains("application/json") {
        return Ok(Json(metrics).into_response());
    }
    Ok(([(header::CONTENT_TYPE, TEXT)], text(&metrics)).into_response())
}

fn family(family: sandbox::Family) -> Option<api::MetricFamily> {
    let kind = match family.samples.first()?.value {
        SampleValue::Counter(_) => "counter",
        SampleValue::Gauge(_) => "gauge",
        SampleValue::Histogram(_) => "histogram",
    };
    let sample = |sample: sandbox::Sample| {
        let (value, histogram) = match sample.value {
            SampleValue::Counter(value) | SampleValue::Gauge(value) => (Some(value), None),
            SampleValue::Histogram(of) => (None, Some(of)),
        };
        api::MetricSample {
            labels: sample.labels.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
            value,
            histogram: histogram.map(|of| api::MetricHistogram {
                buckets: (of.buckets.into_iter())
                    .map(|(le, count)| api::MetricBucket { le, count })
                    .collect(),
                sum: of.sum,
                count: of.count,
            }),
        }
    };
    Some(api::MetricFamily {
        name: family.name.to_owned(),
        help: family.help.to_owned(),
        kind: kind.to_owned(),
        samples: family.samples.into_iter().map(sample).collect(),
    })
}

fn text(metrics: &api::Metrics) -> String {
    let mut text = String::new();
    for api::MetricFamily { name, help, kind, samples } in &metrics.families {
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        for api::MetricSample { labels, value, histogram } in samples {
            if let Some(value) = value {
                let _ = writeln!(text, "{name}{} {value}", shown(labels, None));
            }
            if let Some(of) = histogram {
                for api::MetricBucket { le, count } in &of.buckets {
                    let _ = writeln!(text, "{name}_bucket{} {count}", shown(labels, Some(&le.to_string())));
                }
                let _ = writeln!(text, "{name}_bucket{} {}", shown(labels, Some("+Inf")), of.count);
                let _ = writeln!(text, "{name}_sum{} {}", shown(labels, None), of.sum);
                let _ = writeln!(text, "{name}_count{} {}", shown(labels, None), of.count);
            }
        }
    }
    text
}

fn shown(labels: &BTreeMap<String, String>, le: Option<&str>) -> String {
    let pair = |(name, value): (&str, &str)| {
        let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        format!("{name}=\"{value}\"")
    };
    let own = labels.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let pairs: Vec<_> = own.chain(le.map(|le| ("le", le))).map(pair).collect();
    if pairs.is_empty() { String::new() } else { format!("{{{}}}", pairs.join(",")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_what_prometheus_reads() {
        let sample = |value: &str, number| api::MetricSample {
            labels: [("a".to_owned(), value.to_owned())].into(),
            value: Some(number),
            histogram: None,
        };
        let family = |name: &str, kind: &str, samples| api::MetricFamily {
            name: name.to_owned(),
            help: "Two\nlines.".to_owned(),
            kind: kind.to_owned(),
            samples,
        };
        let of = api::MetricHistogram {
            buckets: vec![api::MetricBucket { le: 0.5, count: 1 }],
            sum: 2.5,
            count: 2,
        };
        let histogram = api::MetricSample { labels: BTreeMap::new(), value: None, histogram: Some(of) };
        let families = vec![
            family("x_total", "counter", vec![sample("q\"\\\n", 3.0)]),
            family("y_seconds", "histogram", vec![histogram]),
        ];
        assert_eq!(
            text(&api::Metrics { families }),
            "# HELP x_total Two\\nlines.\n# TYPE x_total counter\nx_total{a=\"q\\\"\\\\\\n\"} 3\n\
             # HELP y_seconds Two\\nlines.\n# TYPE y_seconds histogram\ny_seconds_bucket{le=\"0.5\"} 1\n\
             y_seconds_bucket{le=\"+Inf\"} 2\ny_seconds_sum 2.5\ny_seconds_count 2\n"
        );
    }

    #[test]
    fn each_route_has_its_class() {
        for (method, path, expected) in [
            (Method::POST, Some("/sandboxes/{id}/exec"), "exec"),
            (Method::GET, Some("/sandboxes/{id}/proxy/{port}/{*path}"), "proxy"),
            (Method::PUT, Some("/sandboxes/{id}/files"), "files"),
            (Method::POST, Some("/sandboxes/{id}/stop"), "change"),
            (Method::GET, Some("/sandboxes/{id}"), "read"),
            (Method::POST, Some("/sandboxes"), "change"),
            (Method::GET, Some("/metrics"), "watch"),
            (Method::GET, None, "unknown"),
        ] {
            assert_eq!(class(&method, path), expected, "{method} {path:?}");
        }
    }
}
