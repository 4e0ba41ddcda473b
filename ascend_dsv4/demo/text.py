# SPDX-License-Identifier: Apache-2.0
"""Text from which the demo's vocabulary is made. Any text would do; this one gives tokens of English, Chinese and code."""

from __future__ import annotations

from typing import Final

TEXT: Final = """\
A language model reads a text one token after another and says which token is likely to come next. The one that is drawn
is put behind the text, and the next step begins. Most of the work of such a step is to multiply a short list of numbers
with very long tables of numbers, so the speed of the whole depends on how fast the tables can be read from memory.

The first layers of this model look at a window only: the last few tokens, and nothing before them. Other layers keep
something of everything that came earlier. They fold four tokens into one entry and then choose a few of the entries, the
ones that seem to matter for the question at hand. A third kind folds many more tokens into one entry, and looks at all of
them. Because the entries are few, a very long text still fits into the memory of one machine.

After each attention comes a mixture of experts. There are many of them, but every token is sent to a few, and one more
that is shared by all. Which experts a token is sent to is decided by a small table of scores. In the first layers there
are no scores at all: the number of the token alone decides, and the choice is the same every time.

What is the weather like today? It was raining in the morning, but now the sun is out and the streets are dry again. We
could walk along the river, past the old bridge, and have some tea in the garden behind the market. The children would
like that. They have been asking for a boat since the beginning of the summer, and there is a man who lends them out.

When the ship came into the harbour, the captain counted the boxes twice. There should have been twelve of them, and there
were eleven. Nobody had seen anything. The cook said that he had slept, the helmsman said that he had been at the wheel,
and the cat, who knew where the box was, said nothing. So they wrote eleven in the book and went home for dinner.

Please write a function that returns the largest of three numbers. Then explain, step by step, how you would test it, and
what happens if two of the numbers are equal. Do not use any library. Thank you for your help!

def largest(a, b, c):
    best = a
    for x in (b, c):
        if x > best:
            best = x
    return best

class Queue:
    def __init__(self, size):
        self.size = size
        self.items = []

    def push(self, item):
        if len(self.items) >= self.size:
            raise ValueError("the queue is full")
        self.items.append(item)
        return True

for (int i = 0; i < n; i++) { total += values[i] * weights[i]; }
{"name": "demo", "layers": [0, 4, 128, 4], "hidden_size": 256, "quantized": true, "note": null}

It is not the case that every question has an answer, but every answer once had a question. I think that you should read
it again, slowly, from the start. There are 24 hours in a day, 365 days in a year, and 1024 tokens in this vocabulary.

语言模型一次读一个词元，然后给出下一个词元的概率。模型的权重是随机的，所以它写出来的文字没有意义。
今天的天气很好，我们一起去公园散步吧。请你写一个函数，返回三个数中最大的一个。谢谢你的帮助！
中国的首都是北京，上海在海边。他说他不知道，但是大家都知道他知道。你好，世界！我的名字是演示模型。
昇腾是一种处理器，注意力、专家和缓存都在上面运行。时间不多了，现在开始。
"""
