;; An endless loop in init.
;; limits: setup_fuel = 20000000
;; breaks: setup_fuel
;; start: `init` | all fuel consumed
(func $init (param i32) (result i32) (loop $l (br $l)) unreachable)
