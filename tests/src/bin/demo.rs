//! The demonstration: one container in a microVM, on a containerd that goes away again.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use bulkhead_tests::bed::{Bed, Test};
use bulkhead_tests::failure::{Outcome, both};
use bulkhead_tests::options::{Options, USAGE};
use bulkhead_tests::{image, leftovers, measure, product};

fn main() -> ExitCode {
    match work() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("demo: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn work() -> Outcome {
    let Some(options) = Options::parse(std::env::args_os().skip(1))? else {
        println!("{USAGE}");
        return Ok(());
    };
    // Kept with the build, for trying it by hand.
    let tar = options.target.join("demo/busybox.tar");
    fs::create_dir_all(options.target.join("demo"))?;
    image::write(Path::new("/bin/busybox"), &options.cache, &tar, &[image::NAME])?;

    println!("starting a containerd of our own and importing {}", image::NAME);
    let bed = Bed::make(options)?;
    let test = Test::new(&bed, "demo");
    let container = test.container();
    println!(
        "$ ctr run --rm --runtime {} {} demo uname -r\n",
        bed.options.runtime.name(),
        image::NAME
    );
    let shown = (|| {
        let done = container.run(&[], &["uname", "-r"])?.ok()?;
        println!("  kernel of the container   {}", done.out().trim());
        println!(
            "  kernel of this host       {}",
            fs::read_to_string("/proc/sys/kernel/osrelease")?.trim()
        );
        println!("  from start to end         {:.1} s\n", done.took.as_secs_f64());
        println!("its cold start, milliseconds from the start of the shim's server:");
        for (phase, milliseconds) in measure::phases(&bed.containerd.log(), &container.id) {
            println!("  {milliseconds:>7}  {phase}");
        }
        Ok(())
    })();
    both(shown, test.close())?;
    let word = bed.containerd.dir().to_string_lossy().into_owned();
    bed.containerd.stop()?;
    let left = leftovers::entries(&product::state_dir(bed.containerd.dir()));
    leftovers::none(&word, &left, bed.options.deadline(20))?;

    println!(
        "\ncontainerd and the VM are gone again. To try it by hand, with the containerd of this machine:\n\
         \n  make install && bulkhead check\
         \n  ctr image import {}\
         \n  ctr run --rm -t --runtime {} {} demo sh",
        tar.display(),
        bed.options.runtime.name(),
        image::NAME
    );
    Ok(())
}
