//! A relay that says anything, in any order, at any time.

use super::tests::{NONCE, REALM, Scene, key};
use super::*;
use crate::stun::Draft;
use proptest::prelude::*;

/// What a relay may say, right or wrong; `id` is that of the last request.
fn message(kind: u8, id: TransactionId, seed: u8) -> Vec<u8> {
    let stray = TransactionId([seed; 12]);
    let challenge = Some(Challenge::new(REALM, NONCE));
    let method = if seed.is_multiple_of(2) { Method::JOIN } else { Method::REFRESH };
    let side = SideId::new(["a", "b", "c"][usize::from(seed % 3)]);
    match kind {
        0..=2 => {
            Refusal { challenge, ..Refusal::new([401, 438][usize::from(seed % 2)]) }.encode(method, id, None)
        }
        3..=5 => Granted { lifetime: seed.into(), peer: PeerStatus::Absent }.encode(method, id, &key()),
        6 => Refusal::new(300 + u16::from(seed)).encode(method, id, Some(&key())),
        7 | 8 => {
            let status = [PeerStatus::Present, PeerStatus::Gone, PeerStatus::Absent][usize::from(seed % 3)];
            Peer { status, side, user: None, retry_after: None }.encode(stray)
        }
        9 => messages::ping(stray),
        10 => Draft::new(Method(seed.into()), Class::Indication, stray).unsealed(),
        _ => Closing::new(Reason::Limit).encode(stray),
    }
}

proptest! {
    // A relay that says anything in any order, at times with a broken byte, at times nothing for long.
    #[test]
    fn nothing_that_comes_breaks_it(
        steps in prop::collection::vec((0..14u8, any::<u8>(), 0..20_000u64, 0..400usize, 0..40u8), 1..120),
    ) {
        let mut scene = Scene::new();
        let (mut last, mut ended, mut pending) = (TransactionId([0; 12]), false, 0);
        for (kind, seed, wait, at, change) in steps {
            scene.now += Duration::from_millis(wait);
            while let Some(due) = scene.side.poll_timeout().filter(|due| *due <= scene.now) {
                scene.side.handle_timeout(scene.now);
                // A deadline that was met is another one now.
                prop_assert!(scene.side.poll_timeout() != Some(due), "{due:?}");
            }
            if kind < 12 {
                let mut bytes = message(kind, last, seed);
                if change < 8 {
                    let at = at % bytes.len();
                    bytes[at] ^= 1 << change;
                }
                scene.say(&bytes);
            } else if kind == 12 {
                scene.side.heard(scene.now);
            } else if seed == 0 {
                scene.side.leave(scene.now);
            }
            while let Some(output) = scene.side.poll_output() {
                prop_assert!(!ended, "{output:?} after the end");
                match output {
                    Output::Send(bytes) => {
                        let message = messages::decode(&bytes).unwrap();
                        if matches!(message.method, Method::JOIN | Method::REFRESH) && message.class == Class::Request {
                            last = message.id;
                            pending += 1;
                        }
                    }
                    Output::Left | Output::Ended(_) => ended = true,
                    _ => {}
                }
            }
        }
        // One answer, one deadline or one Peer indication, one request: nothing runs away.
        prop_assert!(pending <= 242);
    }

    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut scene = Scene::joined();
        scene.say(&bytes);
        prop_assert!(matches!(scene.output(), Output::Ended(SideError::Malformed(_))));
    }
}
