//! What `help` prints.

use super::flags::Program;
use super::{cluster, peer, volume};

/// The commands of one family: usage and what each does.
pub(crate) fn family(program: Program, name: &str, lines: &[(&str, &str)]) -> String {
    let title = format!("{} {name} commands", program.name());
    let rule = "=".repeat(title.len() + 1);
    let lines = lines.iter().fold(String::new(), |text, (usage, what)| {
        text + usage + " - " + what + "\n"
    });
    format!("\n{title}\n{rule}\n\n{lines}\n")
}

/// `mortar help`.
pub(crate) fn all(program: Program) -> String {
    if program == Program::Gluster {
        return " peer help                - display help for peer commands\n \
                volume help              - display help for volume commands\n \
                global help              - list global commands\n\n\n"
            .to_owned();
    }
    let mut text = String::from("Mortar: a distributed storage engine\n\nCommands:\n");
    let words = peer::help_lines()
        .into_iter()
        .chain(volume::help_lines())
        .chain(cluster::help_lines());
    for (usage, what) in words {
        text.push_str(&format!("  {usage}\n      {what}\n"));
    }
    text.push_str(
        "  mount HOST:/VOLUME DIR [-o OPTIONS] [-f]\n      mount a volume\n  \
         stats DIR|VOLUME [--json]\n      counts and latencies of file operations\n  \
         brick info|check|ls|cat|export|wipe ...\n      look into bricks offline; free what deleted volumes left\n  \
         demo\n      a replicated volume of three file bricks, mounted, in one command\n\n\
         Words can be abbreviated while only one is meant (mortar vol info).\n\n\
         Flags, before the command or behind it:\n  \
         --server=HOST[:PORT][,...]    daemons to ask, the first that answers is used (default: MORTAR_SERVER,\n                                \
         else 127.0.0.1:24007); --remote-host is the same\n  \
         --mode=script|interactive     ask no questions, or read answers even if standard input is no terminal\n  \
         --xml, --json                 for programs\n  \
         --timeout=N                   seconds a command may take (120)\n  \
         --help, --version, --print-logdir, --print-statedumpdir\n  \
         --log-file=F, --log-level=L, --nolog, --wignore, --wignore-partition, --glusterd-sock=P\n                                \
         accepted as gluster has them, without effect\n",
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_is_laid_out_as_gluster_does() {
        assert_eq!(
            family(Program::Gluster, "volume", &[("volume list", "list all")]),
            "\ngluster volume commands\n========================\n\nvolume list - list all\n\n"
        );
    }

    #[test]
    fn help_fits_its_lines() {
        for line in all(Program::Mortar).lines() {
            assert!(line.len() <= 120, "{line}");
        }
    }
}
