//! Decisions on views: who is a member of a set and who its primary. Pure: from the configured bricks, the views
//! decided so far and what bricks have reported.
//!
//! A membership belongs to one run of a brick. A report of another run, of a failed store or of a clean stop ends it.
//! Views are formed from the members of the last view that took effect; when none of them runs any more, the set
//! *opens* over those that answer.

use std::collections::BTreeMap;
use std::time::Duration;

use mortar_protocol::env::Mono;
use mortar_protocol::ids::{BootId, BrickId, Epoch, NodeId, Opening, Pos, RunId, Seq, SetId};
use mortar_protocol::peer::History;
use mortar_protocol::report::{BrickEvent, FromBrick, MemberRuns};
use mortar_protocol::view::{Member, View};

use super::machine::SetViews;
use crate::setlog::Positions;

/// A brick as the volume names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Configured {
    /// The brick.
    pub brick: BrickId,
    /// Node that serves it.
    pub node: NodeId,
    /// Whether it keeps file data.
    pub keeps_data: bool,
}

/// What a brick's newest run has said.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Running {
    run: RunId,
    boot: BootId,
    history: History,
    member: Option<MemberRuns>,
    /// Why it can be no member in this run, if so.
    out: Option<&'static str>,
}

/// What the control plane has heard of one set since it began to lead. Not durable: bricks say it again.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Seen {
    bricks: BTreeMap<BrickId, Running>,
    /// Since when no member of the last effective view is known to run.
    closed_since: Option<Mono>,
    adopted: Option<(Epoch, RunId)>,
    joining: BTreeMap<BrickId, (Epoch, RunId)>,
    proposed: BTreeMap<BrickId, (Epoch, RunId)>,
}

impl Seen {
    /// Takes a report in.
    pub fn report(&mut self, report: &FromBrick) {
        let own = |seen: &mut Self, why| {
            let running = seen.bricks.get_mut(&report.brick);
            if let Some(running) = running.filter(|running| running.run == report.run) {
                running.out = Some(why);
            }
        };
        match &report.event {
            BrickEvent::Started {
                boot,
                history,
                member,
                damaged,
                ..
            } => {
                let known = self.bricks.get(&report.brick);
                if known.is_some_and(|known| known.run == report.run && known.out.is_some()) {
                    return;
                }
                let running = Running {
                    run: report.run,
                    boot: *boot,
                    history: history.clone(),
                    member: member.clone(),
                    out: damaged.then_some("its log is damaged"),
                };
                self.bricks.insert(report.brick, running);
            }
            BrickEvent::Adopted { epoch } => self.adopted = Some((*epoch, report.run)),
            BrickEvent::Joining { epoch, joiner, run } => {
                self.joining.insert(*joiner, (*epoch, *run));
            }
            BrickEvent::Propose { epoch, joiner, run } => {
                self.joining.insert(*joiner, (*epoch, *run));
                self.proposed.insert(*joiner, (*epoch, *run));
            }
            BrickEvent::CannotFollow { member, run, .. } => {
                let running = self.bricks.get_mut(member);
                if let Some(running) = running.filter(|running| running.run == *run) {
                    running.out = Some("it lacks changes that the set's log no longer holds");
                }
            }
            BrickEvent::Poisoned { .. } | BrickEvent::Stopped => {
                let why = match report.event {
                    BrickEvent::Stopped => "it was stopped",
                    _ => "it has failed",
                };
                self.bricks.entry(report.brick).or_insert_with(|| Running {
                    run: report.run,
                    boot: BootId::default(),
                    history: History::default(),
                    member: None,
                    out: Some(why),
                });
                own(self, why);
            }
            BrickEvent::SilentSessions { .. } => {}
        }
    }

    /// Whether the set waits to be opened.
    pub fn waits(&self) -> bool {
        self.closed_since.is_some()
    }

    /// Whether a brick has said anything.
    pub fn has_heard(&self, brick: BrickId) -> bool {
        self.bricks.contains_key(&brick)
    }

    /// Why a brick is not in its set.
    pub fn why_absent(&self, brick: BrickId) -> &'static str {
        match self.bricks.get(&brick) {
            None => "it does not run",
            Some(running) => running.out.unwrap_or("it has not caught up yet"),
        }
    }

    fn standing(&self, member: &Member) -> Standing {
        match self.bricks.get(&member.brick) {
            None => Standing::Unheard,
            Some(running) if running.run == member.run && running.out.is_none() => Standing::Runs,
            Some(_) => Standing::Ended,
        }
    }

    /// The run of a brick that could be a member now.
    fn fit(&self, brick: BrickId) -> Option<&Running> {
        self.bricks
            .get(&brick)
            .filter(|running| running.out.is_none())
    }
}

/// What is known of a membership.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// Its run has reported and no other has since.
    Runs,
    /// Nothing has been heard of the brick.
    Unheard,
    /// Another run has reported, or this one serves no more.
    Ended,
}

/// A set as the decisions need it.
pub struct Scene<'a> {
    /// The set.
    pub set: SetId,
    /// Its configured bricks.
    pub bricks: &'a [Configured],
    /// Views decided so far.
    pub views: &'a SetViews,
    /// `cluster.open-wait`.
    pub open_wait: Duration,
}

impl Scene<'_> {
    /// The next view of the set, if one is due: a new one, or the current one having taken effect. To be committed,
    /// sent to all configured bricks, and followed by another call.
    pub fn decide(&self, seen: &mut Seen, now: Mono) -> Option<View> {
        if let Some(view) = self.take_effect(seen) {
            return Some(view);
        }
        let Some(base) = &self.views.effective else {
            return self.first(seen, now);
        };
        let runs = |member: &Member| seen.standing(member) == Standing::Runs;
        if base
            .members
            .iter()
            .any(|member| member.keeps_data && runs(member))
        {
            seen.closed_since = None;
            return self.change(base, seen);
        }
        if self.pending_runs(seen) {
            return None;
        }
        self.open(base, seen, now)
    }

    /// The current view, if its primary has reported that all members adopted its log.
    fn take_effect(&self, seen: &Seen) -> Option<View> {
        let current = self.views.current.as_ref().filter(|view| !view.effective)?;
        let primary = current.primary_member()?;
        (seen.adopted == Some((current.epoch, primary.run))).then(|| View {
            effective: true,
            ..current.clone()
        })
    }

    /// Whether there is a view that has not taken effect and still can.
    fn pending_stands(&self, seen: &Seen) -> bool {
        self.views.current.as_ref().is_some_and(|view| {
            let ended = |member: &Member| seen.standing(member) == Standing::Ended;
            !view.effective && !view.members.iter().any(ended)
        })
    }

    /// Whether there is a view that has not taken effect, all of whose members are known to run.
    fn pending_runs(&self, seen: &Seen) -> bool {
        self.views.current.as_ref().is_some_and(|view| {
            let runs = |member: &Member| seen.standing(member) == Standing::Runs;
            !view.effective && view.members.iter().all(runs)
        })
    }

    fn next_epoch(&self) -> Epoch {
        self.views
            .current
            .as_ref()
            .map_or(Epoch(1), |view| view.epoch.next())
    }

    fn view(&self, primary: BrickId, members: Vec<Member>, opening: Opening) -> View {
        let bricks = self.bricks.iter().map(|info| info.brick);
        let absent = bricks
            .filter(|brick| members.iter().all(|member| member.brick != *brick))
            .collect();
        View {
            set: self.set,
            epoch: self.next_epoch(),
            primary,
            members,
            absent,
            opening,
            effective: false,
        }
    }

    /// A member that is known to run keeps the set going: drop the ended, take joiners in.
    fn change(&self, base: &View, seen: &Seen) -> Option<View> {
        let current = self.views.current.as_ref().unwrap_or(base);
        let kept: Vec<Member> = base
            .members
            .iter()
            .filter(|member| seen.standing(member) != Standing::Ended)
            .copied()
            .collect();
        let opening = current.opening.max(base.opening);
        if !current.effective && self.pending_stands(seen) {
            return None;
        }
        if !current.effective || kept.len() < base.members.len() {
            return Some(self.view(self.primary_of(base, &kept, seen)?, kept, opening));
        }
        // The primary waits for a joiner that it announced until another view: also for one that is gone.
        let gone = seen.joining.iter().any(|(joiner, (epoch, run))| {
            let fit = seen.fit(*joiner).is_some_and(|running| running.run == *run);
            *epoch == base.epoch && base.member(*joiner).is_none() && !fit
        });
        if gone {
            return Some(self.view(self.primary_of(base, &kept, seen)?, kept, opening));
        }
        let joiner = self.bricks.iter().find_map(|info| {
            let (epoch, run) = *seen.proposed.get(&info.brick)?;
            let fit = seen.fit(info.brick)?;
            (epoch == base.epoch && fit.run == run && base.member(info.brick).is_none()).then_some(
                Member {
                    brick: info.brick,
                    node: info.node,
                    run,
                    keeps_data: info.keeps_data,
                },
            )
        })?;
        let mut members = kept;
        members.push(joiner);
        Some(self.view(base.primary, members, opening))
    }

    /// The old primary if it stays, else a member that is known to run and keeps data.
    fn primary_of(&self, base: &View, kept: &[Member], seen: &Seen) -> Option<BrickId> {
        let fit = |member: &&Member| member.keeps_data && seen.standing(member) == Standing::Runs;
        let old = kept.iter().find(|member| member.brick == base.primary);
        let chosen = old.filter(fit).or_else(|| kept.iter().find(fit));
        chosen.map(|member| member.brick)
    }

    /// The first opening: nothing has ever been acknowledged.
    fn first(&self, seen: &mut Seen, now: Mono) -> Option<View> {
        if self.pending_runs(seen) {
            return None;
        }
        let members: Vec<Member> = self
            .bricks
            .iter()
            .filter_map(|info| self.answered(info, seen))
            .collect();
        let heard = self
            .bricks
            .iter()
            .filter(|info| seen.bricks.contains_key(&info.brick));
        let complete = heard.count() == self.bricks.len();
        self.open_with(members, complete, Opening(1), seen, now)
    }

    fn answered(&self, info: &Configured, seen: &Seen) -> Option<Member> {
        seen.fit(info.brick).map(|running| Member {
            brick: info.brick,
            node: info.node,
            run: running.run,
            keeps_data: info.keeps_data,
        })
    }

    /// No member of the last effective view runs: opens over those of its members that have answered in a new run.
    fn open(&self, base: &View, seen: &mut Seen, now: Mono) -> Option<View> {
        let of_base = |info: &&Configured| base.member(info.brick).is_some();
        let answers: Vec<Member> = self
            .bricks
            .iter()
            .filter(of_base)
            .filter_map(|info| self.answered(info, seen))
            .collect();
        let complete = base
            .members
            .iter()
            .all(|member| seen.bricks.contains_key(&member.brick));
        let lossless = answers.iter().any(|answer| {
            let (Some(was), Some(running)) = (base.member(answer.brick), seen.fit(answer.brick))
            else {
                return false;
            };
            running.member.as_ref().is_some_and(|member| {
                member.runs.contains(&was.run) && (member.boot == running.boot || member.clean)
            })
        });
        let current = self
            .views
            .current
            .as_ref()
            .map_or(base.opening, |view| view.opening);
        let opening = current.max(base.opening);
        let opening = if lossless { opening } else { opening.next() };
        self.open_with(answers, complete, opening, seen, now)
    }

    /// An opening view over `members`, once all have answered or have been absent for long enough.
    fn open_with(
        &self,
        members: Vec<Member>,
        complete: bool,
        opening: Opening,
        seen: &mut Seen,
        now: Mono,
    ) -> Option<View> {
        let since = *seen.closed_since.get_or_insert(now);
        if !complete && now.since(since) < self.open_wait {
            return None;
        }
        // What is above the last view that took effect was made by views that never served: it says nothing.
        let last = self
            .views
            .effective
            .as_ref()
            .map_or(Epoch(u64::MAX), |view| view.epoch);
        let head = |member: &Member| {
            seen.fit(member.brick)
                .map(|running| newest_upto(&running.history, last))
        };
        // The highest log; of equals the first configured.
        let mut primary: Option<&Member> = None;
        for member in members.iter().filter(|member| member.keeps_data) {
            if primary.is_none_or(|best| head(member) > head(best)) {
                primary = Some(member);
            }
        }
        let primary = primary?.brick;
        seen.closed_since = None;
        Some(self.view(primary, members, opening))
    }
}

/// The newest entry of a log that an epoch up to `last` made.
fn newest_upto(history: &History, last: Epoch) -> Pos {
    let later = history.starts.iter().find(|start| start.epoch > last);
    later.map_or(history.head, |start| {
        history
            .at(Seq(start.seq.0.saturating_sub(1)))
            .unwrap_or(history.base)
    })
}

#[cfg(test)]
mod cluster;
#[cfg(test)]
mod opening_rules;
#[cfg(test)]
mod tests;
