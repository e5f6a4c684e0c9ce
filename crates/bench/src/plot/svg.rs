//! The few shapes that the pictures need.

use std::fmt::{self, Write as _};

/// Where a text stands beside its point.
#[derive(Debug, Clone, Copy)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// A picture that grows.
pub(super) struct Svg {
    width: f64,
    height: f64,
    body: String,
}

/// Pixels that a text of this size takes at most, for fonts without serifs.
#[expect(clippy::cast_precision_loss, reason = "texts are short")]
pub(super) fn text_width(text: &str, size: f64) -> f64 {
    text.chars().count() as f64 * size * 0.6
}

impl Svg {
    pub(super) fn new(width: f64, height: f64) -> Self {
        Self { width, height, body: String::new() }
    }

    fn add(&mut self, shape: fmt::Arguments<'_>) {
        // Writing to a string does not fail.
        let _written = writeln!(self.body, "{shape}");
    }

    pub(super) fn text(&mut self, (x, y): (f64, f64), size: f64, anchor: Anchor, colour: &str, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        self.add(format_args!(
            r#"<text x="{x:.1}" y="{y:.1}" font-size="{size}" text-anchor="{anchor}" fill="{colour}">{text}</text>"#
        ));
    }

    pub(super) fn line(&mut self, (x1, y1): (f64, f64), (x2, y2): (f64, f64), width: f64, colour: &str) {
        self.add(format_args!(
            r#"<line x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}" stroke="{colour}" stroke-width="{width}"/>"#
        ));
    }

    pub(super) fn path(&mut self, points: &[(f64, f64)], colour: &str) {
        let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let points = points.join(" ");
        self.add(format_args!(
            r#"<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.8"/>"#
        ));
    }

    pub(super) fn rect(&mut self, (x, y): (f64, f64), width: f64, height: f64, fill: &str) {
        self.add(format_args!(
            r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" fill="{fill}"/>"#
        ));
    }

    /// A mark of the series with this number: its shape tells it, too.
    pub(super) fn mark(
        &mut self,
        series: usize,
        (x, y): (f64, f64),
        size: f64,
        colour: &str,
        see_through: bool,
    ) {
        let opacity = if see_through { 0.55 } else { 1.0 };
        let points = match series % 4 {
            0 => {
                self.add(format_args!(
                    r#"<circle cx="{x:.1}" cy="{y:.1}" r="{size}" fill="{colour}" fill-opacity="{opacity}"/>"#
                ));
                return;
            }
            1 => [(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)],
            2 => [(0.0, -1.2), (1.1, 1.0), (-1.1, 1.0), (0.0, -1.2)],
            _ => [(0.0, -1.4), (1.4, 0.0), (0.0, 1.4), (-1.4, 0.0)],
        };
        let points: Vec<String> =
            points.iter().map(|(dx, dy)| format!("{:.1},{:.1}", x + dx * size, y + dy * size)).collect();
        let points = points.join(" ");
        self.add(format_args!(r#"<polygon points="{points}" fill="{colour}" fill-opacity="{opacity}"/>"#));
    }

    pub(super) fn end(self) -> String {
        let Self { width, height, body } = self;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} \
             {height}\" font-family=\"DejaVu Sans, Verdana, sans-serif\">\n<rect width=\"{width}\" \
             height=\"{height}\" fill=\"#ffffff\"/>\n{body}</svg>\n"
        )
    }
}
