//! What has happened in histories, so that none of it is never tried.

/// What the history of a world was made of.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Tally {
    pub(crate) commits: u64,
    pub(crate) rejections: u64,
    pub(crate) queued_reloads: u64,
    pub(crate) renewals: u64,
    pub(crate) adoptions: u64,
    pub(crate) monitor_restarts: u64,
    pub(crate) monitor_kills: u64,
    pub(crate) orphan_kills: u64,
    pub(crate) given_up: u64,
    pub(crate) refused: u64,
    pub(crate) strangers: u64,
    pub(crate) hurried: u64,
    pub(crate) gave_up: u64,
    pub(crate) fatal: u64,
    pub(crate) exits: u64,
    pub(crate) seen: u64,
    pub(crate) late_listens: u64,
    pub(crate) must_accept: u64,
    pub(crate) half_listening: u64,
    pub(crate) unseeable: u64,
    pub(crate) bypasses: u64,
    pub(crate) scaled: u64,
    pub(crate) quiet: u64,
    pub(crate) tuned: u64,
    pub(crate) tuned_while_starting: u64,
    pub(crate) recounted: u64,
    pub(crate) replanned: u64,
    pub(crate) finished: u64,
    pub(crate) finished_by_one: u64,
    pub(crate) ended_before: u64,
    pub(crate) hastened: u64,
    pub(crate) shares: u64,
    pub(crate) fall_backs: u64,
    pub(crate) patient: u64,
    pub(crate) restarts: u64,
    pub(crate) molds_failed: u64,
}

impl Tally {
    /// Whether everything happened that is to be tested.
    pub(crate) fn covers_all(self) -> bool {
        let reloads = [self.commits, self.rejections, self.queued_reloads, self.renewals];
        let deaths = [self.adoptions, self.monitor_restarts, self.monitor_kills, self.orphan_kills];
        let ends = [self.gave_up, self.fatal, self.exits];
        let watching = [self.seen, self.late_listens, self.must_accept, self.unseeable, self.scaled, self.quiet];
        let limits = [self.finished, self.finished_by_one, self.ended_before, self.hastened];
        let half = [self.half_listening, self.given_up, self.refused, self.strangers, self.hurried];
        let rolling = [self.shares, self.fall_backs, self.patient, self.restarts, self.bypasses];
        let configuration = [self.tuned, self.tuned_while_starting, self.recounted, self.replanned];
        let further = limits.iter().chain(&rolling).chain(&configuration).chain(&half);
        !reloads.iter().chain(&deaths).chain(&ends).chain(&watching).chain(further).any(|count| *count == 0)
    }

    pub(crate) fn add(&mut self, other: Tally) {
        self.commits += other.commits;
        self.rejections += other.rejections;
        self.queued_reloads += other.queued_reloads;
        self.renewals += other.renewals;
        self.adoptions += other.adoptions;
        self.monitor_restarts += other.monitor_restarts;
        self.monitor_kills += other.monitor_kills;
        self.orphan_kills += other.orphan_kills;
        self.given_up += other.given_up;
        self.refused += other.refused;
        self.strangers += other.strangers;
        self.hurried += other.hurried;
        self.gave_up += other.gave_up;
        self.fatal += other.fatal;
        self.exits += other.exits;
        self.seen += other.seen;
        self.late_listens += other.late_listens;
        self.must_accept += other.must_accept;
        self.half_listening += other.half_listening;
        self.unseeable += other.unseeable;
        self.bypasses += other.bypasses;
        self.scaled += other.scaled;
        self.quiet += other.quiet;
        self.tuned += other.tuned;
        self.tuned_while_starting += other.tuned_while_starting;
        self.recounted += other.recounted;
        self.replanned += other.replanned;
        self.finished += other.finished;
        self.finished_by_one += other.finished_by_one;
        self.ended_before += other.ended_before;
        self.hastened += other.hastened;
        self.shares += other.shares;
        self.fall_backs += other.fall_backs;
        self.patient += other.patient;
        self.restarts += other.restarts;
        self.molds_failed += other.molds_failed;
    }
}
