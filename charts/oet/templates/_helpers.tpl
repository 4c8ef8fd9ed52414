{{- define "oet.name" -}}
{{- .Values.nameOverride | default "oet" | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{/* What all names begin with: the release, and the chart's name where the release does not say it. */}}
{{- define "oet.fullname" -}}
{{- $name := include "oet.name" . -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- .Values.fullnameOverride | default $full | trunc 50 | trimSuffix "-" -}}
{{- end }}

{{/* Names of objects without a namespace: a namespace has no dot, so two releases never share one. */}}
{{- define "oet.clusterName" -}}
{{- printf "%s.%s" .Release.Namespace (include "oet.fullname" .) -}}
{{- end }}

{{- define "oet.apiAccount" -}}
{{- .Values.api.serviceAccount.name | default (printf "%s-api" (include "oet.fullname" .)) -}}
{{- end }}

{{/* Names under which clients may address the API, as [server] hosts: its Service's, the ingress', and those of api.hosts. */}}
{{- define "oet.apiHosts" -}}
{{- $service := printf "%s-api" (include "oet.fullname" .) -}}
{{- $inside := printf "%s.%s" $service .Release.Namespace -}}
{{- $hosts := list $service $inside (printf "%s.svc" $inside) (printf "%s.svc.cluster.local" $inside) -}}
{{- if and .Values.api.ingress.enabled .Values.api.ingress.host -}}
{{- $hosts = append $hosts .Values.api.ingress.host -}}
{{- end -}}
{{- join " " (concat $hosts (.Values.api.hosts | default list) | uniq) -}}
{{- end }}

{{- define "oet.operatorAccount" -}}
{{- .Values.operator.serviceAccount.name | default (printf "%s-operator" (include "oet.fullname" .)) -}}
{{- end }}

{{- define "oet.runnerAccount" -}}
{{- .Values.runner.serviceAccount.name | default (printf "%s-runner" (include "oet.fullname" .)) -}}
{{- end }}

{{/* How the API server names a ServiceAccount. Takes a list: root, account. */}}
{{- define "oet.username" -}}
{{- printf "system:serviceaccount:%s:%s" (index . 0).Release.Namespace (index . 1) -}}
{{- end }}

{{/* Labels that Pods are selected by; they never change. Takes a list: root, component. */}}
{{- define "oet.selector" -}}
app.kubernetes.io/name: ska-oso-oet
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "oet.labels" -}}
{{ include "oet.selector" . }}
app.kubernetes.io/part-of: ska-oso
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
helm.sh/chart: {{ printf "%s-%s" (index . 0).Chart.Name (index . 0).Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "oet.image" -}}
{{- $image := .Values.image -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $image.repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $image.repository ($image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end }}

{{/* A value as text: Helm reads numbers as floats and would print a million as 1e+06. */}}
{{- define "oet.text" -}}
{{- if kindIs "float64" . -}}
{{- if eq (floor .) . }}{{ int64 . }}{{ else }}{{ . }}{{ end -}}
{{- else -}}
{{- toString . -}}
{{- end -}}
{{- end }}

{{/* Environment variables as JSON, from a map of names and values. */}}
{{- define "oet.env" -}}
{{- $env := list -}}
{{- range $name, $value := . -}}
{{- $env = append $env (dict "name" $name "value" (include "oet.text" $value)) -}}
{{- end -}}
{{- toJson $env -}}
{{- end }}

{{/* Where the archive of scheduling blocks is, as JSON of environment variables without the password. */}}
{{- define "oet.odaEnv" -}}
{{- $env := dict "ODA_BACKEND_TYPE" .Values.oda.backend -}}
{{- if eq .Values.oda.backend "postgres" -}}
{{- $postgres := .Values.oda.postgres -}}
{{- $host := required "oda.backend is postgres: oda.postgres.host must name the server" $postgres.host -}}
{{- $env = dict "ODA_BACKEND_TYPE" "postgres" "POSTGRES_HOST" $host "POSTGRES_PORT" (include "oet.text" $postgres.port) "POSTGRES_DB_NAME" $postgres.database "ADMIN_POSTGRES_USER" $postgres.user -}}
{{- end -}}
{{- toJson $env -}}
{{- end }}

{{/* What Pod Security calls restricted, and a little more. */}}
{{- define "oet.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "oet.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "oet.tangoHost" -}}
{{- if .Values.simulation.enabled -}}
{{- printf "%s-telescope.%s.svc:10000" (include "oet.fullname" .) .Release.Namespace -}}
{{- else -}}
{{- .Values.tangoHost | default (get (.Values.global | default dict) "tango_host") -}}
{{- end -}}
{{- end }}

{{/* Whether the API keeps a lasting timeline: runners then post to it what their scripts say. Empty for no. */}}
{{- define "oet.hasTimeline" -}}
{{- $timeline := .Values.timeline -}}
{{- if or $timeline.database.existingSecret $timeline.database.url $timeline.persistence.enabled }}yes{{ end -}}
{{- end }}

{{/* The claim with the file of SQLite. */}}
{{- define "oet.timelineClaim" -}}
{{- .Values.timeline.persistence.existingClaim | default (printf "%s-timeline" (include "oet.fullname" .)) -}}
{{- end }}

{{/* Whether runners post what happened to the API, instead of that it reads it from the Pods' logs. Empty for no. */}}
{{- define "oet.hasIngest" -}}
{{- if and (include "oet.hasTimeline" .) .Values.timeline.ingest.enabled }}yes{{ end -}}
{{- end }}

{{/* Where they post: the API's Service, which is in the same namespace as their Pods. */}}
{{- define "oet.timelineUrl" -}}
{{- if include "oet.hasIngest" . -}}
{{- .Values.timeline.ingest.url | default (printf "http://%s-api.%s.svc:5001" (include "oet.fullname" .) .Release.Namespace) -}}
{{- end -}}
{{- end }}

{{/* Where Pods of a component may run. Takes a list: root, component. */}}
{{- define "oet.placement" -}}
{{- $root := index . 0 -}}
{{- $part := get $root.Values (index . 1) -}}
{{- with $root.Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $part.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $part.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $part.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $part.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "oet.selector" . | nindent 8 }}
{{- end }}

{{/* The fields of status that are the operator's: all of the resource's but `runner`. */}}
{{- define "oet.operatorStatusFields" -}}
state procedureId script subarray history podName grant refusal reason message conditions observedGeneration resolved stacktrace abort
{{- end }}

{{/* A rule of egress for script Pods: to the port on which the API takes entries. */}}
{{- define "oet.egressToEntries" -}}
{{- if include "oet.hasIngest" . -}}
- ports: [{port: 5001, protocol: TCP}]
  to:
    - podSelector:
        matchLabels: {{- include "oet.selector" (list . "api") | nindent 10 }}
{{- end -}}
{{- end }}
