//! The sample: a library with books, members, loans, covers and one recording. The same every time.

use model::{Error, Result};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

const BOOKS: u32 = 600;
const MEMBERS: u32 = 2_400;
const LOANS: u32 = 1_200;
/// Every 15th book has a cover.
const COVER_EVERY: u32 = 15;

const FIRST: [&str; 12] =
    ["Ada", "Bao", "Chinua", "Dorothy", "Elif", "Fyodor", "Gabriela", "Haruki", "Ida", "José", "Karen", "Łucja"];
const LAST: [&str; 12] = [
    "Achebe",
    "Borges",
    "Christie",
    "Dürrenmatt",
    "Eco",
    "Ferrante",
    "Grass",
    "Hurston",
    "Ishiguro",
    "Jansson",
    "Kiš",
    "Lem",
];
const WORDS: [&str; 16] = [
    "silent", "garden", "river", "stone", "winter", "mirror", "letter", "island", "clock", "paper", "night", "bridge",
    "salt", "orchard", "thunder", "harbour",
];

/// Numbers that look random and are the same every time (xorshift).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % sides.max(1)
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.roll(from.len())]
    }
}

/// Makes the library.
pub fn make(root: &Path) -> Result<()> {
    let books = root.join("books");
    make_folder(&books)?;
    let mut dice = Dice(0x5EED_B00C);
    for n in 1..=BOOKS {
        write(&books.join(format!("b{n:04}.json")), book(n, &mut dice, "").as_bytes())?;
        if n % COVER_EVERY == 0 {
            attach(&books, n, "cover.svg", cover(n, &mut dice).as_bytes())?;
        }
    }
    attach(&books, 7, "reading.wav", &recording(&mut dice))?;
    let members: Vec<String> = (1..=MEMBERS).map(|n| member(n, &mut dice)).collect();
    write(&root.join("members.jsonl"), (members.join("\n") + "\n").as_bytes())?;
    let loans: Vec<String> = (1..=LOANS).map(|n| loan(n, &mut dice)).collect();
    write(&root.join("loans.json"), format!("[\n  {}\n]\n", loans.join(",\n  ")).as_bytes())
}

/// What a day in the library changes: about one document in a hundred, among them book 42.
pub fn change(root: &Path) -> Result<()> {
    let books = root.join("books");
    let mut dice = Dice(0xDA7);
    for n in (42..BOOKS).step_by(30) {
        let text = book(n, &mut dice, ",\n  \"note\": \"repaired\"");
        write(&books.join(format!("b{n:04}.json")), text.as_bytes())?;
    }
    for n in [100, 200, 301] {
        let path = books.join(format!("b{n:04}.json"));
        fs::remove_file(&path).map_err(|e| Error::io(format!("removing {}", path.display()), e))?;
    }
    attach(&books, 42, "review.txt", "A book that one should not lend to friends.\n".as_bytes())?;
    let path = root.join("members.jsonl");
    let mut members = fs::read_to_string(&path).map_err(|e| Error::io(format!("reading {}", path.display()), e))?;
    for n in MEMBERS + 1..=MEMBERS + 20 {
        members.push_str(&member(n, &mut dice));
        members.push('\n');
    }
    write(&path, members.as_bytes())
}

/// One book, spelled the way a person would: with a number that is no float, and text of the world.
fn book(n: u32, dice: &mut Dice, more: &str) -> String {
    let title = format!("The {} {}", dice.pick(&WORDS), dice.pick(&WORDS));
    let mut text = format!(
        "{{\n  \"title\": \"{title}\",\n  \"author\": \"{} {}\",\n  \"year\": {},\n  \"price\": {}.{}0,\n  \"isbn\": 978{:010},\n  \"about\": \"",
        dice.pick(&FIRST),
        dice.pick(&LAST),
        1890 + dice.roll(135),
        5 + dice.roll(30),
        dice.roll(10),
        u64::from(n) * 7_919 + 1_000_000,
    );
    for i in 0..20 + dice.roll(60) {
        text.push_str(if i == 0 { "" } else { " " });
        text.push_str(dice.pick(&WORDS));
    }
    let _ = write!(text, "\"{more}\n}}\n");
    text
}

fn member(n: u32, dice: &mut Dice) -> String {
    let (first, last) = (dice.pick(&FIRST), dice.pick(&LAST));
    format!(
        "{{\"_id\":\"m{n:04}\",\"name\":\"{first} {last}\",\"since\":{},\"fees\":{}.{:02}}}",
        1990 + dice.roll(35),
        dice.roll(20),
        dice.roll(100)
    )
}

fn loan(n: u32, dice: &mut Dice) -> String {
    format!(
        "{{ \"id\": {n}, \"book\": \"b{:04}\", \"member\": \"m{:04}\", \"days\": {} }}",
        1 + dice.roll(BOOKS as usize),
        1 + dice.roll(MEMBERS as usize),
        1 + dice.roll(28)
    )
}

/// A cover that a browser shows.
fn cover(n: u32, dice: &mut Dice) -> String {
    let mut svg = String::from("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 200 300\">\n");
    for _ in 0..40 {
        let _ = writeln!(
            svg,
            "  <circle cx=\"{}\" cy=\"{}\" r=\"{}\" fill=\"hsl({} 70% 60%)\" opacity=\"0.{}\"/>",
            dice.roll(200),
            dice.roll(300),
            4 + dice.roll(40),
            dice.roll(360),
            2 + dice.roll(7)
        );
    }
    let _ = write!(svg, "  <text x=\"100\" y=\"150\" text-anchor=\"middle\" font-size=\"24\">No. {n}</text>\n</svg>\n");
    svg
}

/// A recording that a player plays: 34 seconds of a tone in rain, about 3 MB.
fn recording(dice: &mut Dice) -> Vec<u8> {
    const RATE: u32 = 44_100;
    let samples = RATE * 34;
    let bytes = samples * 2;
    let mut wav = Vec::with_capacity(bytes as usize + 44);
    wav.extend_from_slice(b"RIFF");
    wav.extend_from_slice(&(bytes + 36).to_le_bytes());
    wav.extend_from_slice(b"WAVEfmt \x10\0\0\0\x01\0\x01\0");
    wav.extend_from_slice(&RATE.to_le_bytes());
    wav.extend_from_slice(&(RATE * 2).to_le_bytes());
    wav.extend_from_slice(b"\x02\0\x10\0data");
    wav.extend_from_slice(&bytes.to_le_bytes());
    for i in 0..samples {
        let tone = (f64::from(i) * 220.0 * std::f64::consts::TAU / f64::from(RATE)).sin() * 6000.0;
        let rain = dice.roll(2048) as i16 - 1024;
        wav.extend_from_slice(&(tone as i16 + rain).to_le_bytes());
    }
    wav
}

fn attach(books: &Path, n: u32, name: &str, content: &[u8]) -> Result<()> {
    let folder = books.join(format!("b{n:04}.attachments"));
    make_folder(&folder)?;
    write(&folder.join(name), content)
}

fn make_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(|e| Error::io(format!("making {}", path.display()), e))
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    fs::write(path, content).map_err(|e| Error::io(format!("writing {}", path.display()), e))
}
