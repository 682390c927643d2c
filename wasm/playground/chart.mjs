// A chart of the last minute, or of less at the beginning: filled lines over time, stacked when there are several.

const SVG = 'http://www.w3.org/2000/svg';
const HEIGHT = 132;
const SPANS = [15, 30, 60]; // seconds
const MARGIN = { top: 8, right: 2, bottom: 18, left: 34 };

function element(name, attributes, parent) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  parent?.append(made);
  return made;
}

/** The least of 1, 2, 4, 5, 10, 20 ... that is not below a number. */
function ceiling(number) {
  const power = 10 ** Math.floor(Math.log10(Math.max(number, 1)));
  return [1, 2, 4, 5, 10].map(step => step * power).find(step => step >= number);
}

/** Numbers over time in an SVG element of its own. */
export class Chart {
  #points = [];
  #width = 320;
  #scale = 1;
  #span = SPANS[0];
  #named = 0;

  /**
   * @param {Element} parent
   * @param {{label: string, series: string[], least?: number}} options
   *   series: names, in the order they are stacked, which are class names too; least: what the axis reaches at least
   */
  constructor(parent, { label, series, least = 4 }) {
    Object.assign(this, { label, series, least });
    this.svg = element('svg', { class: 'chart', role: 'img', height: HEIGHT, 'aria-label': `${label}: nothing yet` });
    this.grid = element('g', { class: 'grid' }, this.svg);
    this.areas = series.map(name => element('path', { class: `area ${name}` }, this.svg));
    this.lines = series.map(name => element('path', { class: `line ${name}` }, this.svg));
    parent.append(this.svg);
    new ResizeObserver(([{ contentRect }]) => {
      this.#width = Math.max(160, contentRect.width);
      this.#draw();
    }).observe(parent);
  }

  /**
   * Add what is so now.
   * @param {number[]} values one for each of the series
   */
  push(values) {
    const now = performance.now() / 1000;
    this.#points.push([now, values]);
    const old = this.#points.findIndex(([time]) => time >= now - SPANS.at(-1) - 2);
    if (old > 0) this.#points.splice(0, old);
    this.#draw();
    if (now - this.#named > 2) {
      this.#named = now;
      this.svg.setAttribute('aria-label', `${this.label}: ${this.series.map((name, i) => `${name} ${Math.round(values[i])}`).join(', ')}`);
    }
  }

  #draw() {
    const [width, right, bottom] = [this.#width, this.#width - MARGIN.right, HEIGHT - MARGIN.bottom];
    this.svg.setAttribute('viewBox', `0 0 ${width} ${HEIGHT}`);
    this.svg.setAttribute('width', width);
    const now = this.#points.at(-1)?.[0] ?? 0;
    const age = now - (this.#points[0]?.[0] ?? now);
    this.#span = SPANS.find(span => span >= age) ?? SPANS.at(-1);
    const highest = Math.max(this.least, ...this.#points.map(([, values]) => values.reduce((sum, value) => sum + value, 0)));
    this.#scale = ceiling(highest);
    const x = time => right - ((now - time) / this.#span) * (right - MARGIN.left);
    const y = value => bottom - (value / this.#scale) * (bottom - MARGIN.top);
    this.#axes(x, y, now, right, bottom);
    const seen = this.#points.filter(([time]) => x(time) >= MARGIN.left);
    let below = seen.map(() => 0);
    this.series.forEach((_, i) => {
      const tops = seen.map(([, values], at) => below[at] + values[i]);
      const point = (value, at) => `${x(seen[at][0]).toFixed(1)} ${y(value).toFixed(1)}`;
      const path = (heights, from) => heights.map((value, at) => `${at || from ? 'L' : 'M'}${point(value, at)}`);
      const back = path(below, 1).reverse();
      const front = path(tops, 0);
      this.areas[i].setAttribute('d', seen.length > 1 ? `${front.join('')}${back.join('')}Z` : '');
      this.lines[i].setAttribute('d', seen.length > 1 ? front.join('') : '');
      below = tops;
    });
  }

  #axes(x, y, now, right, bottom) {
    this.grid.replaceChildren();
    for (const value of [0, this.#scale / 2, this.#scale]) {
      element('line', { x1: MARGIN.left, x2: right, y1: y(value), y2: y(value) }, this.grid);
      const text = element('text', { x: MARGIN.left - 6, y: y(value) + 3.5, 'text-anchor': 'end' }, this.grid);
      text.textContent = value >= 1000 ? `${+(value / 1000).toFixed(1)}k` : `${+value.toFixed(1)}`;
    }
    for (let ago = 0; ago <= this.#span; ago += this.#span / 3) {
      const anchor = ago === 0 ? 'end' : ago === this.#span ? 'start' : 'middle';
      const text = element('text', { x: x(now - ago), y: bottom + 14, 'text-anchor': anchor }, this.grid);
      text.textContent = ago ? `−${ago} s` : 'now';
    }
  }
}
