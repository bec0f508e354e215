//! Runs targets of `fuzz/` with random inputs and with mutations of their seeds. The inputs are the
//! same in every run, so that a failure can be reproduced.

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
    let mut rng = Rng::new(0x5eed);
    for _ in 0..count {
        attempt(name, target, &generate(&seeds, &mut rng));
    }
}

fn attempt(name: &str, target: Target, input: &[u8]) {
    // The reason is printed already.
    let result = catch_unwind(AssertUnwindSafe(|| target(input)));
    assert!(
        result.is_ok(),
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

/// Returns a random input in one of eight cases, and a mutated seed otherwise.
fn generate(seeds: &[Vec<u8>], rng: &mut Rng) -> Vec<u8> {
    if rng.below(8) == 0 {
        return (0..rng.below(64)).map(|_| rng.byte()).collect();
    }
    let mut input = rng.pick(seeds).clone();
    for _ in 0..=rng.below(4) {
        mutate(&mut input, seeds, rng);
    }
    input
}

fn mutate(input: &mut Vec<u8>, seeds: &[Vec<u8>], rng: &mut Rng) {
    let at = rng.below(input.len() + 1);
    let end = at + rng.below(input.len() - at + 1);
    match rng.below(8) {
        0 => input.truncate(at),
        1 => input.extend(rng.pick(seeds)),
        2 => drop(input.drain(at..end)),
        3 => input.extend_from_within(at..end),
        4 => input.insert(at, rng.byte()),
        5 => input[at..end].fill(rng.byte()),
        6 => drop(input.splice(at..end, rng.pick(seeds).iter().copied())),
        _ => {
            if let Some(byte) = input.get_mut(at) {
                *byte ^= 1 << rng.below(8);
            }
        }
    }
    // Long enough for several frames at the limit; repeated splicing would grow the input without
    // bound.
    input.truncate(300);
}

/// `SplitMix64`, by Steele, Lea and Flood (2014).
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    /// Returns a byte that is often significant in one of the formats.
    pub fn byte(&mut self) -> u8 {
        match self.below(4) {
            0 => *self.pick(b"\n\r:,{}\"0159-\0\x01\x7f\x80\xff"),
            _ => self.next().to_le_bytes()[0],
        }
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}
