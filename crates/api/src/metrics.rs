//! What is told of the host in numbers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `GET /metrics` as JSON.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Metrics {
    /// All families, each name once.
    pub families: Vec<MetricFamily>,
}

/// Values of one name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MetricFamily {
    /// Name, with its unit.
    pub name: String,
    /// What it is.
    pub help: String,
    /// `counter`, `gauge` or `histogram`.
    pub kind: String,
    /// The values, told apart by their labels.
    pub samples: Vec<MetricSample>,
}

/// One value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MetricSample {
    /// Labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Of a counter or a gauge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<f64>,
    /// Of a histogram.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub histogram: Option<MetricHistogram>,
}

/// How often what was seen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MetricHistogram {
    /// Each counts those of the one before it, too. What is above the last bound is in `count` only.
    pub buckets: Vec<MetricBucket>,
    /// All together.
    pub sum: f64,
    /// How many.
    pub count: u64,
}

/// How often something up to a bound was seen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MetricBucket {
    /// Upper bound, which belongs to it.
    pub le: f64,
    /// How many.
    pub count: u64,
}
