//! Targets of `fuzz/` with random inputs, and with mutations of their seeds. The same inputs every
//! time: what fails once can be looked at.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

pub type Target = fn(&[u8]);

pub fn try_all(targets: &[(&'static str, Target)], count: usize) {
    std::thread::scope(|scope| {
        for &(name, target) in targets {
            scope.spawn(move || try_one(name, target, count));
        }
    });
}

fn try_one(name: &str, target: Target, count: usize) {
    let seeds = seeds(name);
    for seed in &seeds {
        attempt(name, target, seed);
    }
    let mut dice = Dice::new(0x5eed);
    for _ in 0..count {
        attempt(name, target, &make_up(&seeds, &mut dice));
    }
}

fn attempt(name: &str, target: Target, input: &[u8]) {
    // What it says about the reason is printed already.
    let tried = catch_unwind(AssertUnwindSafe(|| target(input)));
    assert!(
        tried.is_ok(),
        "{name} fails with b\"{}\"",
        input.escape_ascii()
    );
}

fn seeds(name: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fuzz/seeds")
        .join(name);
    let mut paths: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// One in eight is random from end to end; the others are seeds that have suffered.
fn make_up(seeds: &[Vec<u8>], dice: &mut Dice) -> Vec<u8> {
    if dice.below(8) == 0 {
        return (0..dice.below(64)).map(|_| dice.byte()).collect();
    }
    let mut input = dice.pick(seeds).clone();
    for _ in 0..=dice.below(4) {
        mutate(&mut input, seeds, dice);
    }
    input
}

fn mutate(input: &mut Vec<u8>, seeds: &[Vec<u8>], dice: &mut Dice) {
    let at = dice.below(input.len() + 1);
    let end = at + dice.below(input.len() - at + 1);
    match dice.below(8) {
        0 => input.truncate(at),
        1 => input.extend(dice.pick(seeds)),
        2 => drop(input.drain(at..end)),
        3 => input.extend_from_within(at..end),
        4 => input.insert(at, dice.byte()),
        5 => input[at..end].fill(dice.byte()),
        6 => drop(input.splice(at..end, dice.pick(seeds).iter().copied())),
        _ => {
            if let Some(byte) = input.get_mut(at) {
                *byte ^= 1 << dice.below(8);
            }
        }
    }
    // Long enough for several frames of the limit; splicing would go on for ever.
    input.truncate(300);
}

/// `SplitMix64`, by Steele, Lea and Flood (2014).
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.roll() % bound as u64).unwrap()
    }

    /// Often one that means something somewhere.
    pub fn byte(&mut self) -> u8 {
        match self.below(4) {
            0 => *self.pick(b"\n\r:,{}\"0159-\0\x01\x7f\x80\xff"),
            _ => self.roll().to_le_bytes()[0],
        }
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}
