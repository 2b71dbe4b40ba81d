//! Views, in the order in which they can be made.

use crate::catalog::Options;
use bson::{Bson, Document};
use std::collections::{HashMap, HashSet};

/// The command that makes a view.
pub(crate) fn create(name: &str, options: &Options) -> Document {
    let mut command = bson::doc! { "create": name };
    command.extend(options.options.clone());
    command
}

/// The positions of views, each after those that it reads. `views` are names with options, all of
/// one database.
pub(crate) fn in_order(views: &[(&str, &Options)]) -> Vec<usize> {
    let by_name: HashMap<&str, usize> = views.iter().enumerate().map(|(i, (name, _))| (*name, i)).collect();
    let (mut order, mut seen) = (Vec::with_capacity(views.len()), HashSet::new());
    for start in 0..views.len() {
        // A chain of views can be long: no recursion.
        let mut stack = vec![(start, false)];
        while let Some((i, is_ready)) = stack.pop() {
            if is_ready {
                order.push(i);
            } else if seen.insert(i) {
                stack.push((i, true));
                let read = reads(&views[i].1.options);
                stack.extend(read.iter().filter_map(|name| by_name.get(name)).map(|i| (*i, false)));
            }
        }
    }
    order
}

/// The collections that a view may read: the one it is on, and whatever its stages name.
fn reads(options: &Document) -> Vec<&str> {
    let mut names: Vec<&str> = options.get_str("viewOn").into_iter().collect();
    if let Some(pipeline) = options.get("pipeline") {
        collect(pipeline, &mut names, 0);
    }
    names
}

fn collect<'a>(value: &'a Bson, names: &mut Vec<&'a str>, depth: usize) {
    match value {
        _ if depth > 100 => {}
        Bson::Array(all) => all.iter().for_each(|v| collect(v, names, depth + 1)),
        Bson::Document(document) => {
            for (key, value) in document {
                match value {
                    Bson::String(name) if ["from", "coll", "$unionWith"].contains(&key.as_str()) => names.push(name),
                    _ => collect(value, names, depth + 1),
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::CollectionKind;
    use bson::doc;

    #[test]
    fn views_come_after_what_they_read() {
        let view = |on: &str, pipeline: Vec<Document>| Options {
            kind: CollectionKind::View,
            options: doc! { "viewOn": on, "pipeline": pipeline },
            indexes: Vec::new(),
        };
        let a = view("b", Vec::new());
        let b = view("table", vec![doc! { "$facet": { "x": [{ "$lookup": { "from": "c", "as": "y" } }] } }]);
        let c = view("table", vec![doc! { "$unionWith": "d" }]);
        let d = view("d", Vec::new());
        let views = [("a", &a), ("b", &b), ("c", &c), ("d", &d)];
        let names: Vec<&str> = in_order(&views).into_iter().map(|i| views[i].0).collect();
        assert_eq!(names, ["d", "c", "b", "a"]);
    }
}
