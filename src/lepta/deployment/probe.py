"""Text that two tokenizers are compared on: what languages, people and programs write.

python -c "from lepta.deployment.probe import probe_lines; print(probe_lines()[:40])"
"""

import random
import unicodedata

LINES = 2_000
# A sentence or two in each of sixteen scripts, and in languages whose letters bear marks.
SENTENCES = [
    "The quick brown fox jumps over the lazy dog; it’s 3.14159 — “quoted” … and they'd've said so.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich, nicht wahr?",
    "Le cœur déçu mais l’âme plutôt naïve, Louÿs rêva de crapaüter en canoë.",
    "Pijamalı hasta yağız şoföre çabucak güvendi; İstanbul’da ılık bir gün.",
    "Tiếng Việt có nhiều dấu: ế, ộ, ữ, ẵ; Hà Nội là thủ đô.",
    "Съешь же ещё этих мягких французских булок, да выпей чаю. Ёжик нашёл № 7!",
    "Жебракують філософи при ґанку церкви в Гадячі, ще й шатро їхнє п’яне знаємо.",
    "Қазақ тілі — түркі тілдерінің бірі; әліпбиінде ә, ғ, қ, ң, ө, ұ, ү, һ, і бар.",
    "Η γρήγορη αλεπού πηδάει πάνω από το τεμπέλικο σκυλί. Ἐν ἀρχῇ ἦν ὁ λόγος.",
    "نص حكيم له سر قاطع وذو شأن عظيم، مكتوب على ثوب أخضر. ۱۲۳ پرسش؟",
    "דג סקרן שט בים מאוכזב ולפתע מצא לו חברה; בְּרֵאשִׁית בָּרָא.",
    "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण का सर्वनाश हुआ। १२३",
    "敏捷的棕色狐狸跳过了懒狗。我想在apple工作1314151天～「引用」、（括号）。",
    "いろはにほへと ちりぬるを わかよたれそ、カタカナとｶﾀｶﾅ、2024年。",
    "다람쥐 헌 쳇바퀴에 타고파. 키스의 고유조건은 입술끼리 만나야 하고.",
    "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า กว่าบรรดาฝูงสัตว์เดรัจฉาน ๑๒๓",
    "ქართული ენა მდიდარია; სწავლა სიბერემდე მაწანწალობს.",
    "Բել դղյակի ձախ ժամն օֆ ազգությանը ցպահանջ չճշտած վնաս էր եւ փառք։",
    "யாமறிந்த மொழிகளிலே தமிழ்மொழி போல் இனிதாவது எங்கும் காணோம்.",
    "বাংলা ভাষা সুন্দর। কৃষ্ণচূড়া ফুটেছে, ১২৩ টাকা।",
    "ሰው ሁሉ እኩል ነው። ሰላም ለዓለም፤ አዲስ አበባ።",
    "កាន់តែពិសេសអាច ភាសាខ្មែរ។ မြန်မာဘာသာ စကား။ ພາສາລາວ.",
]
CODE = [
    "def area(width: float, height: float) -> float:\n    return width * height  # m²\n",
    "for (let i = 0; i < 10; i++) {\n\tconsole.log(`${i}\\t${i ** 2}`);\n}\n",
    "SELECT name, COUNT(*) FROM users WHERE age >= 18 GROUP BY name;\r\n",
    '{"key": [1, 2.5e-3, null, true], "путь": "C:\\\\Users\\\\имя"}',
    '<div class="a b">&nbsp;</div><!-- примечание -->\r\n\r\n',
    "std::vector<std::pair<int, char*>> v{{0, nullptr}}; // !=, &&, ||, ->, <<=",
    "https://example.org/путь?a=1&b=%20#frag user@example.org +7 (495) 123-45-67",
    "# Заголовок\n\n- [x] пункт `код`\n\n| a | b |\n|---|---|\n",
    "if x:\n        y = '''\t\tтабуляция'''\n\n\n\n    pass",
]
EMOJI = "👩‍🔬 👩‍👩‍👧‍👦 🏳️‍🌈 🇫🇷🇷🇺 🫠 ✅ 👍🏽 ❤️‍🔥 😶‍🌫️ 1️⃣ 🦙🦙 ☕️"
SIGNS = "№ … — «» → ∞ ≠ √ x² ½ € ₽ © ° ♪ ▁ ▁▁ a▁b $ '' ......"
NUMBERS = "0 7 42 2024 1234567890 3.14 1,000,000 12:30 50% -5 1e-9 0x1F 3..3 IV"
BREAKS = [*"    ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", " \n ", "\u00a0", "\u200b", ", ", ". ", ",", "-", "/", ""]


def probe_lines(number: int = LINES, seed: int = 1) -> list[str]:
    """Texts of a few words up to a few lines: first those above as they are, then parts of them mixed.

    The same number and seed give the same texts. A third has composed letters (NFC), a third decomposed ones (NFD).
    """
    chance = random.Random(seed)
    lines = [*SENTENCES, *CODE, EMOJI, SIGNS, NUMBERS]
    while len(lines) < number:
        lines.append(_mixed(chance))
    lines = lines[:number]
    lines[1::3] = [unicodedata.normalize("NFC", line) for line in lines[1::3]]
    lines[2::3] = [unicodedata.normalize("NFD", line) for line in lines[2::3]]
    return lines


def _mixed(chance: random.Random) -> str:
    """Some words of one or two sentences, with emoji, signs, numbers and code among them."""
    words = " ".join(chance.sample(SENTENCES, chance.choice([1, 1, 2]))).split(" ")
    start = chance.randrange(len(words))
    parts = words[start : start + chance.randint(2, 12)]
    for kind in (EMOJI.split(), SIGNS.split(), NUMBERS.split(), CODE):
        if chance.random() < 0.2:
            parts.insert(chance.randrange(len(parts) + 1), chance.choice(kind))
    text = "".join(part + chance.choice(BREAKS) for part in parts)
    match chance.randrange(6):
        case 0:
            return text.upper()
        case 1:
            return text.title()
        case _:
            return text
