use std::time::Duration;

use rand::Rng;

/// The first pause is at most so long.
const FIRST: Duration = Duration::from_secs(1);

/// Growing pauses between attempts that go on for ever: each between half of its ceiling and all of it, so that receivers
/// that failed together don't come back together.
#[derive(Debug)]
pub(crate) struct Pauses {
    ceiling: Duration,
    longest: Duration,
}

impl Pauses {
    pub fn new(longest: Duration) -> Self {
        Self {
            ceiling: FIRST.min(longest),
            longest,
        }
    }

    /// The next one.
    pub fn next(&mut self) -> Duration {
        let pause = rand::rng().random_range(self.ceiling / 2..=self.ceiling);
        self.ceiling = (self.ceiling * 2).min(self.longest);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_the_longest() {
        let longest = Duration::from_secs(20);
        let mut pauses = Pauses::new(longest);
        let all: Vec<Duration> = (0..20).map(|_| pauses.next()).collect();
        assert!(all[0] <= FIRST && all[0] >= FIRST / 2);
        assert!(
            all[10..]
                .iter()
                .all(|pause| *pause <= longest && *pause >= longest / 2)
        );
    }
}
