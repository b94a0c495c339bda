;; A slow init: fuel for ever, but no time.
;; limits: setup_fuel = 9000000000000000000, setup_milliseconds = 30
;; breaks: setup_milliseconds
;; start: `init` | interrupt
(func $init (param i32) (result i32) (loop $l (br $l)) unreachable)
