//! The current span follows the coroutine: coroutines that share a thread each see their own span.

#![allow(clippy::unwrap_used)]

use std::io;
use std::sync::{Arc, Mutex};

use greenroom::{Runtime, spawn, yield_now};

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(buf);
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn each_coroutine_sees_its_own_spans() {
    let lines = Lines::default();
    let writer = lines.clone();
    tracing_subscriber::fmt()
        .with_ansi(false)
        .without_time()
        .with_target(false)
        .with_writer(move || writer.clone())
        .init();
    let runtime = Runtime::builder().workers(1).build().unwrap();
    let all = runtime.spawn(|| {
        let each = |n: u32| {
            move || {
                let outer = tracing::info_span!("outer", n).entered();
                for round in 0..3 {
                    let inner = tracing::info_span!("inner", n);
                    let _entered = inner.enter();
                    yield_now();
                    tracing::info!(n, round, "event");
                    yield_now();
                }
                drop(outer);
                yield_now();
                tracing::info!(n, "outside");
            }
        };
        let all: Vec<_> = (0..10).map(|n| spawn(each(n)).unwrap()).collect();
        all.into_iter().for_each(|one| one.join().unwrap());
        // No span is left entered on the thread.
        tracing::info!("alone");
    });
    all.unwrap().join().unwrap();
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    let mut logged = 0;
    for line in text.lines() {
        if line.contains("event") {
            let n: u32 = line
                .rsplit("n=")
                .next()
                .unwrap()
                .split(' ')
                .next()
                .unwrap()
                .parse()
                .unwrap();
            assert!(
                line.contains(&format!("outer{{n={n}}}:inner{{n={n}}}: event")),
                "{line}"
            );
            logged += 1;
        } else {
            assert!(!line.contains('{'), "no span is left: {line}");
        }
    }
    assert_eq!((logged, text.lines().count()), (30, 41), "{text}");
}
