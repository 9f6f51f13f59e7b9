//! Programs that ask much of a file system.

use super::disk::alone_of;
use crate::bed::{Container, Test};
use crate::ensure;
use crate::failure::Outcome;
use crate::runner::Case;

/// The tests of this file.
pub const CASES: &[Case] = &[
    Case::any(
        "storage.programs",
        "git, tar and sqlite work on a root file system and on a volume",
        shared,
    ),
    Case::bulkhead(
        "storage.programs_disk",
        "git, tar and sqlite work on a scratch disk and over it",
        on_disk,
    ),
];

/// A repository of some files.
const GIT: &str = "
    export HOME=/tmp GIT_CONFIG_NOSYSTEM=1
    printf '[user]\\n name = a\\n email = a@b\\n[safe]\\n directory = *\\n' > /tmp/.gitconfig
    git init -q repository; cd repository
    for round in 1 2; do
        for dir in $(seq 5); do
            mkdir -p d$dir
            for file in $(seq 8); do echo $round $dir $file > d$dir/f$file; done
        done
        git add .; git commit -q -m $round
    done";

/// A clone of it.
const CLONE: &str = "
    export HOME=/tmp GIT_CONFIG_NOSYSTEM=1
    git clone -q --no-hardlinks repository clone
    git -C clone fsck --full
    test $(git -C clone ls-files | wc -l) = 40
    test -z \"$(git -C clone status --porcelain)\"
    git -C clone checkout -q HEAD~1; test $(cut -c1 clone/d5/f8) = 1";

/// Every file of a part of Perl there and back, with what it is beside its content.
const TAR: &str = "
    tar -C /perl/5.*.*/unicore -cf perl.tar .
    mkdir perl; tar -C perl -xf perl.tar
    tar -C perl --compare -f perl.tar
    test $(find perl -type f | wc -l) -gt 300
    rm -r perl perl.tar";

/// Two writers and a reader, with the log that all of them map.
const SQLITE: &str = "
    sqlite3 base 'pragma journal_mode = wal; create table t (writer, number);' > /dev/null
    write() {
        for number in $(seq 5); do
            sqlite3 -cmd '.timeout 60000' base \"insert into t values ($1, $number); select count(*) from t;\" > /dev/null
        done
    }
    write 1 & write 2 & wait
    test $(sqlite3 base 'select count(*), sum(number) from t;') = '10|30'
    test $(sqlite3 base 'pragma integrity_check;') = ok";

fn work(container: &Container<'_>, directory: &str) -> Outcome {
    for script in [GIT, CLONE, TAR, SQLITE] {
        container.sh(&format!("mkdir -p {directory}; cd {directory}; {script}"))?;
    }
    Ok(())
}

const PERL: [&str; 2] = ["--mount", "type=bind,src=/usr/share/perl,dst=/perl,options=rbind:ro"];

fn shared(t: &Test<'_>) -> Outcome {
    let (container, dir) = (t.programs()?, t.directory()?);
    let volume = format!("type=bind,src={},dst=/volume,options=rbind", dir.display());
    let flags = [&["--null-io", "--mount", &volume], &PERL[..]].concat();
    container.start_with(&flags, &["sleep", "100000"])?;
    work(&container, "/work")?;
    work(&container, "/volume")?;
    ensure!(dir.join("clone/.git").is_dir(), "the host has no clone");
    Ok(())
}

fn on_disk(t: &Test<'_>) -> Outcome {
    let annotations = [("rootfs_upper", "guest"), ("scratch_paths", "/data")];
    let container = alone_of(t.programs()?, &annotations, &PERL)?;
    work(&container, "/work")?;
    work(&container, "/data")
}
