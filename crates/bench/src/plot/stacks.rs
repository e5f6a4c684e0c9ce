//! What wholes are made of: a bar for each, its parts side by side.

use super::svg::{Anchor, Svg, text_width};
use super::{Bar, COLOURS};

const WIDTH: f64 = 900.0;
const LEFT: f64 = 20.0;
const ROW: f64 = 46.0;
const BAR: f64 = 18.0;

pub(super) fn draw(title: &str, unit: &str, bars: &[Bar]) -> String {
    // The parts that take most have the first colours.
    let mut parts: Vec<(&str, f64)> = Vec::new();
    for (part, took) in bars.iter().flat_map(|bar| &bar.parts) {
        match parts.iter_mut().find(|(name, _)| name == part) {
            Some((_, all)) => *all += took,
            None => parts.push((part, *took)),
        }
    }
    parts.sort_by(|a, b| b.1.total_cmp(&a.1));
    let colour = |part: &str| {
        let at = parts.iter().position(|(name, _)| *name == part).unwrap_or(usize::MAX);
        COLOURS.get(at).copied().unwrap_or("#999999")
    };
    let whole = |bar: &Bar| bar.parts.iter().map(|(_, took)| took).sum::<f64>();
    let most = bars.iter().map(whole).fold(f64::MIN_POSITIVE, f64::max);
    let scale = (WIDTH - LEFT - 110.0) / most;

    let mut legend = Vec::new();
    let (mut x, mut y) = (LEFT, 46.0);
    for (part, _) in &parts {
        let wide = 18.0 + text_width(part, 12.0) + 22.0;
        if x + wide > WIDTH {
            (x, y) = (LEFT, y + 20.0);
        }
        legend.push((x, y, *part));
        x += wide;
    }
    let top = y + 14.0;
    #[expect(clippy::cast_precision_loss, reason = "a handful of bars")]
    let place = |number: usize| top + ROW * number as f64;
    let mut svg = Svg::new(WIDTH.max(text_width(title, 15.0) + 40.0), place(bars.len()) + 10.0);
    svg.text((LEFT, 26.0), 15.0, Anchor::Start, "#000000", title);
    for (x, y, part) in legend {
        svg.rect((x, y - 10.0), 12.0, 12.0, colour(part));
        svg.text((x + 18.0, y), 12.0, Anchor::Start, "#000000", part);
    }
    for (number, bar) in bars.iter().enumerate() {
        let y = place(number);
        svg.text((LEFT, y + 15.0), 12.0, Anchor::Start, "#000000", &bar.name);
        let mut x = LEFT;
        for (part, took) in &bar.parts {
            svg.rect((x, y + 21.0), took * scale, BAR, colour(part));
            x += took * scale;
        }
        let all = format!("{:.0} {unit}", whole(bar));
        svg.text((x + 8.0, y + 21.0 + 13.0), 12.0, Anchor::Start, "#333333", &all);
    }
    svg.end()
}
