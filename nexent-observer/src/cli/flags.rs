//! The flags of the configuration keys, made from their table.

use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, value_parser};

use crate::config::{
    Flags, Origin,
    keys::{KEYS, Key, Kind},
    raw::Raw,
};

/// `--config` and one flag for each key.
#[derive(Debug, Clone)]
pub(super) struct ConfigFlags(Flags);

impl From<ConfigFlags> for Flags {
    fn from(flags: ConfigFlags) -> Self {
        flags.0
    }
}

impl FromArgMatches for ConfigFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = Flags { file: matches.get_one::<PathBuf>("config").cloned(), ..Flags::default() };
        for key in KEYS {
            if let Some(values) = matches.get_many::<String>(key.name) {
                let origin = Origin::Flag { name: format!("--{}", key.flag()) };
                flags.keys.insert(key, Raw { values: values.cloned().collect(), origin });
            }
        }
        Ok(Self(flags))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for ConfigFlags {
    fn augment_args(command: Command) -> Command {
        let file = Arg::new("config")
            .long("config")
            .value_name("FILE")
            .value_parser(value_parser!(PathBuf))
            .help("YAML file with any of these keys in snake_case")
            .long_help("YAML file with any of these keys in snake_case [env: NEXENT_OBSERVER_CONFIG]");
        command.arg(file).args(KEYS.into_iter().map(argument))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

/// Values stay text here: the configuration parses what flags, environment and file say in one place.
fn argument(key: &'static Key) -> Arg {
    let mut long_help = format!("{} [env: {}", key.meaning, key.variable());
    if let Some(alias) = key.alias {
        long_help.push_str(", ");
        long_help.push_str(alias);
    }
    long_help.push(']');
    if let Some(default) = key.default {
        long_help.push_str(&format!(" [default: {default}]"));
    }
    let argument = Arg::new(key.name)
        .long(key.flag())
        .value_name(key.value_name)
        .help(key.meaning)
        .long_help(long_help)
        .hide_short_help(!key.common);
    match key.kind {
        Kind::One => argument.allow_hyphen_values(true).num_args(1),
        // A negative number is ours to refuse: clap would take it for an unknown flag.
        Kind::Many { .. } => argument.action(ArgAction::Append).allow_negative_numbers(true),
        Kind::Switch => argument.num_args(0..=1).require_equals(true).default_missing_value("true"),
    }
}
