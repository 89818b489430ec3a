// The charts of the last minutes, which follow the parts of the page that refresh by themselves.

import { startCharts } from '../src/charts.js';

startCharts();
