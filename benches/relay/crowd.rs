//! Many sides that join at once.

use crate::Outcome;
use crate::side::{Gate, Side};

/// Connections under way at once of one crowd.
const GROUP: usize = 32;

/// Joins `count` sides: of pairs of their own, or two of each pair. `number` tells crowds apart.
pub(crate) fn join(gate: &Gate, number: u64, count: usize, per_pair: usize) -> Outcome<Vec<Side>> {
    let mut sides: Vec<Side> = Vec::with_capacity(count);
    while sides.len() < count {
        let first = sides.len();
        for _ in first..count.min(first + GROUP) {
            let mut side = gate.connect()?;
            side.ask()?;
            sides.push(side);
        }
        for (at, side) in sides.iter_mut().enumerate().skip(first) {
            let pair = [number, (at / per_pair) as u64].map(u64::to_be_bytes).concat();
            side.join(&pair, ["a", "b"][at % per_pair])?;
        }
        for side in &mut sides[first..] {
            side.joined()?;
        }
    }
    Ok(sides)
}
